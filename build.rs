//! Records the commit that a release is built from, which `anklume --version` shows.
#![expect(
    clippy::disallowed_methods,
    reason = "cargo runs this program, which starts git and ends"
)]

use std::path::Path;
use std::process::Command;

/// The files that are built.
const BUILT: [&str; 6] = [
    "src",
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
    ".cargo",
    "docs/infra.md",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A development build would be built again after each commit.
    if std::env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        println!("cargo::rustc-env=ANKLUME_COMMIT=development build");
        return;
    }
    let commit = commit().unwrap_or_else(|| "unknown commit".to_owned());
    println!("cargo::rustc-env=ANKLUME_COMMIT={commit}");
}

/// Returns the commit, and a mark if a file that is built differs from it; `None` if this is no repository of its own.
fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let folder = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&folder).canonicalize().ok()? {
        return None;
    }
    let heads = ["HEAD", "logs/HEAD"].map(|file| git(&["rev-parse", "--git-path", file]));
    for path in heads.iter().flatten().map(String::as_str).chain(BUILT) {
        println!("cargo::rerun-if-changed={path}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&[&["status", "--porcelain", "--"][..], &BUILT].concat())?;
    let mark = if changed.is_empty() { "" } else { ", changed" };
    Some(commit + mark)
}
