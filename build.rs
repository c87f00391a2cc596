//! Records the commit that a release is built from, which `anklume --version` shows.
#![expect(
    clippy::disallowed_methods,
    reason = "cargo runs this program, which starts git and ends"
)]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A development build would be built again after each commit.
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if is_release && Path::new(".git").exists() {
        // Everything that the commit, and whether the files are those of the commit, may depend on.
        for path in [
            ".git/logs/HEAD",
            ".git/HEAD",
            "src",
            "Cargo.toml",
            "Cargo.lock",
            "docs/infra.md",
        ] {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = is_release.then(commit).flatten();
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    let commit = if is_release {
        commit
    } else {
        "development build".to_owned()
    };
    println!("cargo::rustc-env=ANKLUME_COMMIT={commit}");
}

/// Returns the commit, and a mark if a file that is built differs from it; `None` outside of a repository.
fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&[
        "status",
        "--porcelain",
        "--",
        "src",
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
    ])?;
    let mark = if changed.is_empty() { "" } else { ", changed" };
    Some(commit + mark)
}
