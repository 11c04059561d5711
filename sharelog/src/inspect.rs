//! `otedama log inspect`: a folder as a person wants to see it.
use crate::dimensions::DimensionReader;
use crate::error::LogError;
use crate::folder::{self, seg_of};
use crate::journal_scan::read_journals;
use crate::records::DimensionEntry;
use crate::store;
use crate::utc::utc_text;
use otedama_primitives::ShareStatus;
use std::fmt::Write;
use std::path::Path;

/// Segments shown one by one.
const SEGMENTS_SHOWN: usize = 20;

/// A description of the log in `dir`, in use or not. Damage is described, never an error.
pub fn dump(dir: &Path) -> Result<String, LogError> {
    let mut text = String::new();
    let mut line = |part: std::fmt::Arguments<'_>| {
        // Writing into a String does not fail.
        let _ = text.write_fmt(part);
        text.push('\n');
    };
    let listing = folder::list(dir)?;
    match folder::read_epoch(dir) {
        Ok(Some(epoch)) => line(format_args!("epoch {epoch:08x}")),
        Ok(None) => line(format_args!("no epoch: this folder was never opened as a log")),
        Err(error) => line(format_args!("epoch: {error}")),
    }

    line(format_args!("\njournal files: {}", listing.journals.len()));
    for scan in read_journals(dir, u64::MAX)? {
        let name = scan.path.file_name().unwrap_or_default().to_string_lossy();
        match scan.header {
            Some(header) => line(format_args!(
                "  {name}  file {}  run {:02x}/{:06x}  cells {}/{}  batches {}  rows {}  dimension records {}",
                header.file_number,
                header.run_prefix >> 24,
                header.run_prefix & 0x00ff_ffff,
                scan.end_cell,
                header.cells,
                scan.batches,
                scan.rows_in_file,
                scan.dimensions.len()
            )),
            None => line(format_args!("  {name}  no header")),
        }
        scan.problems.iter().for_each(|problem| line(format_args!("    ! {problem}")));
    }
    for path in &listing.set_aside {
        line(format_args!("  set aside: {}", path.file_name().unwrap_or_default().to_string_lossy()));
    }

    let sealed: Vec<_> =
        listing.segments.iter().filter(|(_, files)| files.has_block()).map(|(&key, files)| (seg_of(key), *files)).collect();
    line(format_args!("\nsegments: {}", sealed.len()));
    let skipped = sealed.len().saturating_sub(SEGMENTS_SHOWN);
    if skipped > 0 {
        line(format_args!("  ({skipped} older)"));
    }
    for &(seg, files) in sealed.iter().skip(skipped) {
        match store::read_meta(dir, seg) {
            Ok(Some(meta)) => {
                let statuses: Vec<String> = ShareStatus::ALL
                    .into_iter()
                    .zip(meta.by_status)
                    .filter(|(_, rows)| *rows > 0)
                    .map(|(status, rows)| format!("{} {rows}", status.label()))
                    .collect();
                let journal: Vec<String> =
                    meta.journal.iter().map(|range| format!("{}:{}..{}", range.file, range.first, range.end)).collect();
                let packed_bytes = || std::fs::metadata(store::packed_path(dir, seg)).map_or(0, |metadata| metadata.len());
                let packed = if files.native { String::new() } else { format!(" (packed {})", packed_bytes()) };
                line(format_args!(
                    "  {}  {} to {}  {}  rows {} ({})  bytes {}{packed}  crc {:08x}  hash {:016x}  journal {}",
                    meta.name,
                    utc_text(meta.first_us / 1_000_000),
                    utc_text(meta.last_us / 1_000_000),
                    meta.layout.label(),
                    meta.rows,
                    statuses.join(", "),
                    meta.native_bytes,
                    meta.crc32c,
                    meta.content_hash,
                    journal.join(" ")
                ));
            }
            Ok(None) => {}
            Err(error) => line(format_args!("  ! {error}")),
        }
    }

    let mut counts = [0u64; 7];
    let mut last_run = None;
    let mut damage = Vec::new();
    let mut end = 0;
    match DimensionReader::from(dir, 0) {
        Ok(reader) => {
            for entry in reader {
                let slot = match &entry {
                    Ok((_, DimensionEntry::Run(_))) => 0,
                    Ok((_, DimensionEntry::Session { .. })) => 1,
                    Ok((_, DimensionEntry::Worker { .. })) => 2,
                    Ok((_, DimensionEntry::Job(_))) => 3,
                    Ok((_, DimensionEntry::JobEnd { .. })) => 4,
                    Ok((_, DimensionEntry::Block(_))) => 5,
                    Ok((_, DimensionEntry::VersionMask { .. })) => 6,
                    Err(error) => {
                        damage.push(error.to_string());
                        continue;
                    }
                };
                if let Some(count) = counts.get_mut(slot) {
                    *count += 1;
                }
                if let Ok((offset, entry)) = entry {
                    end = offset;
                    if let DimensionEntry::Run(record) = entry {
                        last_run = Some(record);
                    }
                }
            }
        }
        Err(error) => damage.push(error.to_string()),
    }
    let [runs, sessions, workers, jobs, ends, blocks, masks] = counts;
    line(format_args!(
        "\ndimensions to offset {end}: runs {runs}, sessions {sessions}, workers {workers}, jobs {jobs} (ended {ends}), blocks {blocks}, version masks {masks}"
    ));
    damage.iter().for_each(|error| line(format_args!("  ! {error}")));
    if let Some(run) = last_run {
        line(format_args!(
            "  newest run {:02x}/{:06x} since {}: build {}, kernel {}, driver {}, tier {}",
            run.run.instance,
            run.run.epoch,
            utc_text(run.started_us / 1_000_000),
            run.build,
            run.kernel,
            run.driver,
            run.tier
        ));
    }
    for name in &listing.cursors {
        match store::read_cursor(dir, name) {
            Ok(position) => {
                let position = position.unwrap_or_default();
                line(format_args!("cursor {name}: segment {:08x}, dimensions {}", position.segment, position.dimensions));
            }
            Err(error) => line(format_args!("cursor {name}: {error}")),
        }
    }
    if !listing.foreign.is_empty() {
        line(format_args!("not of the log: {}", listing.foreign.join(", ")));
    }
    Ok(text)
}
