//! The program that goes into machines: this very one.

use std::fs;

use anyhow::Context as _;
use hyper::body::Bytes;

use crate::digest::sha256;
use crate::error::{Exit, Failure};

/// This program, also where its file was replaced or its path is relative.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A program that runs in any machine.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Its file.
    pub(crate) bytes: Bytes,
    /// SHA-256 of it.
    pub(crate) digest: String,
}

impl Program {
    /// Its length, in bytes.
    pub(crate) fn length(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap_or(u64::MAX)
    }

    /// This very program.
    ///
    /// # Errors
    ///
    /// It cannot be read, or it needs a library that a machine may not have.
    pub(crate) fn of_this() -> anyhow::Result<Self> {
        let bytes = fs::read(THIS_PROGRAM).context("cannot read this program")?;
        if !is_static(&bytes) {
            let message = "this anklume needs libraries, and a machine may have none: it cannot go into machines";
            let failure = Failure::new(Exit::Failed, message);
            return Err(failure.help("use the static binary: `make build`").into());
        }
        Ok(Self {
            digest: sha256(&bytes),
            bytes: bytes.into(),
        })
    }
}

/// Returns whether a program asks for no interpreter: a 64-bit little-endian ELF file without a `PT_INTERP` header (elf(5)).
fn is_static(elf: &[u8]) -> bool {
    /// Type of the header that names an interpreter.
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    };
    let headers = || {
        let (first, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|index| number(usize::try_from(first + index * size).ok()?, 4))
            .collect::<Option<Vec<u64>>>()
    };
    elf.starts_with(b"\x7fELF\x02\x01") && headers().is_some_and(|all| !all.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a program with one header.
    fn elf(kind: u8) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[32], file[54], file[56]) = (64, 56, 1);
        file[64] = kind;
        file
    }

    #[test]
    fn only_what_needs_no_interpreter_is_static() {
        assert!(is_static(&elf(1)));
        assert!(!is_static(&elf(3)));
        assert!(!is_static(&elf(1)[..64]));
        assert!(!is_static(b"#!/bin/sh\n"));
        // A shell of the system's has libraries; the program under test has none.
        assert!(!is_static(&fs::read("/bin/sh").unwrap()));
    }
}
