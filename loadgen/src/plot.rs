//! Latency by percentile as one picture, without anything to load from elsewhere.
use hdrhistogram::Histogram;
use std::fmt::Write as _;

/// A line of the picture.
#[derive(Clone, Debug)]
pub struct Series {
    /// Stands in the legend.
    pub name: String,
    /// Latencies in microseconds.
    pub histogram: Histogram<u64>,
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 74.0;
/// Height of a line of the legend.
const LEGEND_LINE: f64 = 22.0;
/// Told apart by most eyes that do not see all colours (Okabe and Ito 2008); the last two lines repeat the first with dashes.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Microseconds with their usual unit.
fn duration_label(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us} µs"),
    }
}

/// The picture as SVG: percentile on a logarithmic scale of what lies beyond it, latency on a logarithmic scale.
pub fn svg(series: &[Series]) -> String {
    let shown: Vec<&Series> = series.iter().filter(|series| !series.histogram.is_empty()).collect();
    let low = shown.iter().map(|series| series.histogram.min().max(1)).min().unwrap_or(1) as f64;
    let high = shown.iter().map(|series| series.histogram.max().max(1)).max().unwrap_or(10) as f64;
    let (low, high) = (10f64.powf(low.log10().floor()), 10f64.powf(high.log10().ceil()).max(10.0));
    let high = if high <= low { low * 10.0 } else { high };
    // As many nines as the largest sample can tell.
    let samples = shown.iter().map(|series| series.histogram.len()).max().unwrap_or(10) as f64;
    let decades = samples.log10().ceil().clamp(2.0, 8.0);
    let height = HEIGHT + LEGEND_LINE * shown.len() as f64;
    let plot_bottom = HEIGHT - BOTTOM;
    let x_of = |beyond: f64| LEFT + (beyond.log10() / decades).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    let y_of = |us: f64| plot_bottom - (us / low).log10() / (high / low).log10() * (plot_bottom - TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"14\" role=\"img\" aria-label=\"Latency of shares by percentile\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"34\" font-size=\"20\" font-weight=\"600\" fill=\"#111\">Latency of shares by percentile</text>\n"
    );
    // Writing to a String cannot fail, here and below.
    let mut us = low;
    while us <= high * 1.001 {
        let y = y_of(us);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#d0d0d0\"/>\n<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#333\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 10.0,
            y + 5.0,
            duration_label(us)
        );
        for minor in 2..10 {
            let at = us * f64::from(minor);
            if at < high {
                let y = y_of(at);
                let _ = writeln!(out, "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#f0f0f0\"/>", WIDTH - RIGHT);
            }
        }
        us *= 10.0;
    }
    for decade in 0..=decades as usize {
        let label = match decade {
            0 => "0 %".to_owned(),
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            nines => format!("99.{} %", "9".repeat(nines - 2)),
        };
        let x = x_of(10f64.powi(decade as i32));
        let anchor = if decade as f64 == decades { "end" } else { "middle" };
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{plot_bottom}\" stroke=\"#d0d0d0\"/>\n<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#333\">{label}</text>\n",
            plot_bottom + 22.0
        );
    }
    let _ = write!(
        out,
        "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#111\">Percentile of shares</text>\n\
         <text transform=\"translate(22 {:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"#111\">Latency, submit to answer</text>\n",
        WIDTH - LEFT - RIGHT,
        plot_bottom - TOP,
        (LEFT + WIDTH - RIGHT) / 2.0,
        plot_bottom + 50.0,
        (TOP + plot_bottom) / 2.0
    );
    for (index, series) in shown.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let dashes = if index >= COLOURS.len() { " stroke-dasharray=\"7 4\"" } else { "" };
        let mut points = String::new();
        let steps = (decades * 60.0) as usize;
        for step in 0..=steps {
            let beyond = 10f64.powf(decades * step as f64 / steps as f64);
            // Past the last sample there is nothing to know.
            if beyond > series.histogram.len() as f64 {
                break;
            }
            let us = series.histogram.value_at_quantile(1.0 - 1.0 / beyond).max(1) as f64;
            let _ = write!(points, "{:.1},{:.1} ", x_of(beyond), y_of(us));
        }
        let _ = write!(points, "{:.1},{:.1}", x_of(series.histogram.len() as f64), y_of(series.histogram.max().max(1) as f64));
        let y = HEIGHT + LEGEND_LINE * index as f64;
        let at = |quantile| series.histogram.value_at_quantile(quantile);
        let _ = write!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\" stroke-linejoin=\"round\"{dashes}/>\n\
             <line x1=\"{LEFT}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"4\"{dashes}/>\n\
             <text x=\"{:.1}\" y=\"{y:.1}\" fill=\"#111\">{} · {} shares · p50 {} · p99 {} · p99.9 {} · max {}</text>\n",
            y - 5.0,
            LEFT + 28.0,
            y - 5.0,
            LEFT + 38.0,
            escaped(&series.name),
            series.histogram.len(),
            duration_label(at(0.5) as f64),
            duration_label(at(0.99) as f64),
            duration_label(at(0.999) as f64),
            duration_label(series.histogram.max() as f64),
        );
    }
    out.push_str("</svg>\n");
    out
}

/// The picture in a page of its own.
pub fn html(series: &[Series]) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Latency of shares by percentile</title>\n\
         <style>body {{ margin: 24px; background: #fff }} svg {{ max-width: 100%; height: auto }}</style></head>\n<body>\n{}</body></html>\n",
        svg(series)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::totals::empty_histogram;

    fn series(name: &str, values: impl Iterator<Item = u64>) -> Series {
        let mut histogram = empty_histogram();
        values.for_each(|value| histogram.saturating_record(value));
        Series { name: name.into(), histogram }
    }

    #[test]
    fn every_point_lies_within_the_frame_and_lines_never_fall() {
        let picture = svg(&[series("a", (1..10_000).map(|value| value * 7)), series("b<&>", [0, 1, 1, 3_600_000_000].into_iter())]);
        let lines: Vec<&str> = picture.split("points=\"").skip(1).map(|rest| rest.split('"').next().expect("points")).collect();
        assert_eq!(lines.len(), 2);
        for line in lines {
            let points: Vec<(f64, f64)> = line
                .split(' ')
                .map(|point| point.split_once(',').map(|(x, y)| (x.parse().expect("x"), y.parse().expect("y"))).expect("point"))
                .collect();
            assert!(
                points.iter().all(|(x, y)| (LEFT..=WIDTH - RIGHT).contains(x) && (TOP - 0.1..=HEIGHT - BOTTOM + 0.1).contains(y)),
                "{points:?}"
            );
            assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 >= pair[1].1), "{points:?}");
        }
        assert!(
            picture.contains("b&lt;&amp;&gt;") && picture.contains("Percentile of shares") && picture.contains("Latency, submit to answer")
        );
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }

    #[test]
    fn nothing_to_show_is_still_a_picture() {
        let picture = html(&[series("empty", std::iter::empty())]);
        assert!(picture.starts_with("<!doctype html>") && !picture.contains("polyline") && !picture.contains("NaN"));
    }
}
