//! Recognizes a file that is in place already, so that a run that was ended can be repeated.

use std::fs::File;
use std::io::Read as _;

use rustix::fs::{FileType, fstat};

use super::portal::Portal;
use crate::catalogue::PortalPath;
use crate::digest::Digester;
use crate::tool::{BlockingStop, ToolError};

/// Number of bytes that are read at once.
const CHUNK: usize = 256 * 1024;

/// Returns whether a regular file of this size and SHA-256 (lower-case hexadecimal) has the path.
pub(super) fn has_content(
    portal: &Portal,
    path: &PortalPath,
    size: u64,
    sha256: &str,
    stop: &BlockingStop,
) -> Result<bool, ToolError> {
    let mut file = match portal.read(path) {
        Ok(file) => File::from(file),
        Err(ToolError::NotFound { .. }) => return Ok(false),
        Err(refused) => return Err(refused),
    };
    let failed = |refused| ToolError::system(format!("read `{path}`"), refused);
    let stat = fstat(&file).map_err(|refused| failed(refused.into()))?;
    let is_file = FileType::from_raw_mode(stat.st_mode).is_file();
    if !is_file || u64::try_from(stat.st_size) != Ok(size) {
        return Ok(false);
    }
    let (mut chunk, mut digest) = (vec![0; CHUNK], Digester::default());
    loop {
        stop.check()?;
        let read = file.read(&mut chunk).map_err(failed)?;
        if read == 0 {
            return Ok(digest.end() == sha256);
        }
        digest.add(chunk.get(..read).unwrap_or_default());
    }
}
