//! Holds the layout: who may import whom, where `unsafe` may stand, and which names say nothing.
//!
//! The checkers are plain functions over made-up inputs as well as over this tree, so that each is seen to fail.
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Package -> packages of this project that it names in its manifest, whatever the kind of dependency.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Who may import whom: pipeline and the control plane (chain, shipper, tuning) never see each other and meet in the root package, and loadgen is the outside
/// world: were it to share the pool's code beyond hashing and the wire, it could not catch the pool's mistakes.
const RULES: [(&str, &[&str]); 15] = [
    // Empty in a release build; anybody may have a place at which tests stop it.
    ("otedama-killpoint", &[]),
    ("otedama-primitives", &[]),
    ("otedama-kernels", &["otedama-primitives"]),
    ("otedama-stratum", &["otedama-primitives"]),
    ("otedama-sharelog", &["otedama-killpoint", "otedama-primitives"]),
    // Reads the log with the kernels, which the log itself has no need of.
    ("otedama-replay", &["otedama-primitives", "otedama-kernels", "otedama-sharelog"]),
    ("otedama-export", &["otedama-primitives", "otedama-sharelog"]),
    ("otedama-pipeline", &["otedama-killpoint", "otedama-primitives", "otedama-kernels", "otedama-stratum", "otedama-sharelog"]),
    ("otedama-chain", &["otedama-primitives", "otedama-kernels"]),
    ("otedama-shipper", &["otedama-killpoint", "otedama-primitives", "otedama-sharelog"]),
    ("otedama-tuning", &[]),
    ("loadgen", &["otedama-primitives", "otedama-kernels", "otedama-stratum"]),
    // Benchmarks measure the data plane from outside; nobody imports them.
    ("benches", &["otedama-primitives", "otedama-kernels", "otedama-stratum", "otedama-sharelog", "otedama-pipeline"]),
    ("xtask", &[]),
    (
        "otedama",
        &[
            "otedama-killpoint",
            "otedama-primitives",
            "otedama-kernels",
            "otedama-stratum",
            "otedama-sharelog",
            "otedama-replay",
            "otedama-export",
            "otedama-pipeline",
            "otedama-chain",
            "otedama-shipper",
            "otedama-tuning",
            "loadgen",
        ],
    ),
];

/// Packages with a workspace of their own: what they need (cmake, boost, nightly), the pool must never need.
const APART: [&str; 4] = ["regtest-node", "engine", "fuzz", "rivals"];

/// Every import that the rules do not allow, in words.
fn import_violations(graph: &Graph) -> Vec<String> {
    let rules: BTreeMap<&str, &[&str]> = RULES.into_iter().collect();
    let mut found = Vec::new();
    for (package, imports) in graph {
        if APART.iter().any(|apart| package == apart || package.ends_with(&format!("-{apart}"))) {
            found.push(format!("{package} stands in the workspace; it has its own manifest"));
            continue;
        }
        let Some(allowed) = rules.get(package.as_str()) else {
            found.push(format!("{package} has no rule: say in tests/imports.rs whom it may import"));
            continue;
        };
        for import in imports.iter().filter(|import| !allowed.contains(&import.as_str())) {
            found.push(format!("{package} imports {import}"));
        }
    }
    found
}

/// The graph in the answer of `cargo metadata --no-deps`. A dependency is one of ours when it has a path.
fn graph(metadata: &Value) -> Graph {
    let packages = metadata["packages"].as_array().expect("cargo metadata lists packages");
    let name = |value: &Value| value["name"].as_str().expect("a package and a dependency have a name").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("a package lists its dependencies");
            (name(package), dependencies.iter().filter(|dependency| dependency["path"].is_string()).map(name).collect())
        })
        .collect()
}

/// Whether `path` (from the root, with `/`) may hold `unsafe`: one file per instruction set and the dispatch beside it, drivers, pinning and clock, the mapping,
/// the calls into libchdb.
fn may_be_unsafe(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["kernels", "src", .., _, file] => ["mod.rs", "avx2.rs", "avx512.rs", "shani.rs", "x86_64.rs"].contains(file),
        ["pipeline", "src", "driver" | "sys", ..] | ["pipeline", "src", "driver.rs" | "sys.rs"] => true,
        ["sharelog", "src", "mapping.rs"] | ["sharelog", "src", "mapping", _] => true,
        ["engine", "src", "library.rs"] => true,
        _ => false,
    }
}

// Not `cores`: those are a machine's, and this project pins stages to them.
const EMPTY_NAMES: [&str; 8] = ["util", "utils", "common", "core", "helper", "helpers", "manager", "managers"];

/// Folders, files and types that are named for nothing, in words.
fn name_violations(path: &str, code: &str) -> Vec<String> {
    let empty = |name: &str| EMPTY_NAMES.contains(&name.to_ascii_lowercase().as_str());
    let mut found: Vec<String> = path
        .split('/')
        .filter(|part| empty(part.strip_suffix(".rs").unwrap_or(part)))
        .map(|part| format!("{path}: {part} says nothing"))
        .collect();
    let words: Vec<&str> = words(code).collect();
    for pair in words.windows(2) {
        let declares = ["struct", "enum", "trait", "type", "union", "mod"].contains(&pair[0]);
        let compound = ["Utils", "Helper", "Manager"].iter().any(|end| pair[1].ends_with(end));
        if declares && (empty(pair[1]) || compound) {
            found.push(format!("{path}: {} {} says nothing", pair[0], pair[1]));
        }
    }
    found
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Rust source without comments, strings and character literals, so that words in them are not taken for code.
fn code_only(source: &str) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(offset, c)| text.get(at + offset) == Some(&c));
    while at < text.len() {
        let word_before = at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_');
        if starts(at, "//") {
            while at < text.len() && text[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            while at < text.len() {
                if starts(at, "/*") {
                    (depth, at) = (depth + 1, at + 2);
                } else if starts(at, "*/") {
                    (depth, at) = (depth - 1, at + 2);
                } else {
                    at += 1;
                }
                if depth == 0 {
                    break;
                }
            }
        } else if !word_before
            && (starts(at, "r\"") || starts(at, "r#\"") || starts(at, "r##\"") || starts(at, "br\"") || starts(at, "br#\""))
        {
            while text[at] != '#' && text[at] != '"' {
                at += 1;
            }
            let hashes = text[at..].iter().take_while(|c| **c == '#').count();
            let end = format!("\"{}", "#".repeat(hashes));
            at += hashes + 1;
            while at < text.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
            out.push(' ');
        } else if text[at] == '"' {
            at += 1;
            while at < text.len() && text[at] != '"' {
                at += if text[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            out.push(' ');
        } else if text[at] == '\'' && (starts(at + 1, "\\") || text.get(at + 2) == Some(&'\'')) {
            // A character literal; anything else behind a quote is a lifetime.
            at += if starts(at + 1, "\\") { 3 } else { 2 };
            while at < text.len() && text[at] != '\'' {
                at += 1;
            }
            at += 1;
            out.push(' ');
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

/// What is wrong with one source file, in words.
fn source_violations(path: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let mut found = name_violations(path, &code);
    if !may_be_unsafe(path) && words(&code).any(|word| word == "unsafe") {
        found.push(format!(
            "{path} has unsafe code; it may stand in kernels' instruction sets, pipeline/src/{{driver,sys}} and sharelog's mapping alone"
        ));
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust source below `folder`, build output left out.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of this tree is readable") {
        let path = entry.expect("an entry of this tree is readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !path.is_symlink() {
            if !name.starts_with('.') && !name.starts_with("target") && !["data", "node_modules"].contains(&name) {
                sources(&path, into);
            }
        } else if name.ends_with(".rs") {
            into.push(path);
        }
    }
}

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let done =
        Command::new(cargo).args(["metadata", "--format-version", "1", "--no-deps"]).current_dir(root()).output().expect("cargo runs");
    assert!(done.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).expect("cargo metadata prints JSON")
}

#[test]
fn crates_import_what_the_design_allows() {
    let graph = graph(&metadata());
    assert!(graph.len() >= RULES.len(), "the workspace lists only {:?}", graph.keys());
    assert_eq!(import_violations(&graph), [""; 0]);
}

#[test]
fn unsafe_code_and_names_stand_where_they_may() {
    let mut paths = Vec::new();
    sources(root(), &mut paths);
    assert!(paths.len() > 20, "only {} sources were found", paths.len());
    let found: Vec<String> = paths
        .iter()
        .flat_map(|path| {
            let source = std::fs::read_to_string(path).expect("a source of this tree is text");
            let shown = path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/");
            source_violations(&shown, &source)
        })
        .collect();
    assert_eq!(found, [""; 0]);
}

#[test]
fn every_library_crate_denies_unsafe_code_by_default() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the root manifest is readable");
    assert!(manifest.contains("unsafe_code = \"deny\""));
    for package in metadata()["packages"].as_array().expect("cargo metadata lists packages") {
        let path = package["manifest_path"].as_str().expect("a package has a manifest");
        let manifest = std::fs::read_to_string(path).expect("a member's manifest is readable");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{path} does not take the workspace's lints");
    }
}

mod the_checkers_can_fail {
    use super::*;

    fn made_up(edges: &[(&str, &[&str])]) -> Graph {
        edges
            .iter()
            .map(|(package, imports)| ((*package).to_owned(), imports.iter().map(|import| (*import).to_owned()).collect()))
            .collect()
    }

    #[test]
    fn each_forbidden_import_is_named() {
        for (package, import) in [
            ("otedama-primitives", "otedama-kernels"),
            ("otedama-kernels", "otedama-stratum"),
            ("otedama-stratum", "otedama-kernels"),
            ("otedama-sharelog", "otedama-pipeline"),
            ("otedama-pipeline", "otedama-chain"),
            ("otedama-pipeline", "otedama-shipper"),
            ("otedama-chain", "otedama-pipeline"),
            ("otedama-chain", "otedama-sharelog"),
            ("otedama-shipper", "otedama-pipeline"),
            ("otedama-tuning", "otedama-pipeline"),
            ("loadgen", "otedama-pipeline"),
            ("loadgen", "otedama-sharelog"),
            ("loadgen", "otedama-chain"),
            ("otedama", "xtask"),
            ("otedama-chain", "regtest-node"),
        ] {
            let found = import_violations(&made_up(&[(package, &["otedama-primitives", import])]));
            assert!(found.contains(&format!("{package} imports {import}")), "{found:?}");
        }
    }

    #[test]
    fn a_new_crate_needs_a_rule_and_the_test_node_stays_apart() {
        assert!(import_violations(&made_up(&[("otedama-ledger", &[])]))[0].contains("has no rule"));
        for apart in ["regtest-node", "fuzz", "otedama-fuzz", "engine"] {
            assert!(import_violations(&made_up(&[(apart, &[])]))[0].contains("its own manifest"), "{apart}");
        }
        assert_eq!(import_violations(&made_up(&[("otedama-pipeline", &["otedama-sharelog", "otedama-kernels"])])), [""; 0]);
    }

    #[test]
    fn dependencies_of_every_kind_count_when_they_have_a_path() {
        let metadata = serde_json::json!({"packages": [{"name": "otedama-chain", "dependencies": [
            {"name": "serde", "path": null, "kind": null},
            {"name": "otedama-pipeline", "path": "/x/pipeline", "kind": "dev"},
        ]}]});
        assert_eq!(import_violations(&graph(&metadata)), ["otedama-chain imports otedama-pipeline"]);
    }

    #[test]
    fn unsafe_is_found_in_code_and_not_in_words_about_it() {
        let code = "fn f() { let c = '\"'; unsafe { g() } }";
        for path in [
            "chain/src/lib.rs",
            "pipeline/src/stages/net.rs",
            "kernels/src/sha256d/scalar.rs",
            "kernels/src/sha256d/lanes.rs",
            "sharelog/src/journal.rs",
            "src/main.rs",
            "kernels/src/lib.rs",
        ] {
            assert_eq!(source_violations(path, code).len(), 1, "{path}");
        }
        for path in [
            "kernels/src/sha256d/avx2.rs",
            "kernels/src/sha256d/mod.rs",
            "pipeline/src/driver/uring.rs",
            "pipeline/src/sys/pin.rs",
            "sharelog/src/mapping.rs",
        ] {
            assert_eq!(source_violations(path, code), [""; 0], "{path}");
        }
        let words = "// unsafe\n/* unsafe /* unsafe */ unsafe */ #![deny(unsafe_code)] fn f<'a>(s: &'a str) { g(\"unsafe \\\" unsafe\", r#\"unsafe \" unsafe\"#, '\\'', 'x') }";
        assert_eq!(source_violations("chain/src/lib.rs", words), [""; 0]);
        assert_eq!(source_violations("chain/src/lib.rs", &format!("{words} unsafe fn h() {{}}")).len(), 1);
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        for (path, code) in [
            ("chain/src/utils/hex.rs", ""),
            ("chain/src/util.rs", ""),
            ("chain/core/a.rs", ""),
            ("chain/src/helpers.rs", ""),
            ("chain/src/a.rs", "pub struct Manager { x: u8 }"),
            ("chain/src/a.rs", "trait ConnectionManager {}"),
            ("chain/src/a.rs", "enum Helper { A }"),
            ("chain/src/a.rs", "mod common;"),
        ] {
            assert_eq!(source_violations(path, code).len(), 1, "{path} {code}");
        }
        assert_eq!(source_violations("pipeline/src/cores.rs", "struct Cores { core: usize }"), [""; 0]);
        assert_eq!(source_violations("chain/src/coinbase.rs", "struct Coinbase { core: usize } // a manager"), [""; 0]);
    }
}
