//! The compiled kernel program: built in when it was there at build time, else from a file.

use std::borrow::Cow;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::CaptureError;

#[cfg(embedded_object)]
static EMBEDDED: Option<&[u8]> =
    Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/interceptor-capture.o")));
#[cfg(not(embedded_object))]
static EMBEDDED: Option<&[u8]> = None;

/// Larger than any object of ours will ever be.
const MAX_BYTES: u64 = 4 << 20;

/// An object file and its name for messages.
pub(super) struct Object {
    pub name: String,
    pub bytes: Cow<'static, [u8]>,
}

impl Object {
    /// The named file, or the one built in.
    pub(super) fn find(file: Option<&Path>) -> Result<Self, CaptureError> {
        let Some(file) = file else {
            let bytes = EMBEDDED.ok_or(CaptureError::NoObject)?;
            return Ok(Self { name: "built in".into(), bytes: Cow::Borrowed(bytes) });
        };
        let name = file.display().to_string();
        let bad = |message: String| CaptureError::BadObject { object: name.clone(), message };
        let size = std::fs::metadata(file).map_err(|e| bad(e.to_string()))?.len();
        if size > MAX_BYTES {
            return Err(bad(format!("{size} bytes is too large for it")));
        }
        let bytes = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
        Ok(Self { name, bytes: bytes.into() })
    }

    /// SHA-256 of the file.
    pub(super) fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }
}

/// SHA-256 of the object built into this binary.
pub(super) fn embedded_digest() -> Option<[u8; 32]> {
    EMBEDDED.map(|b| Sha256::digest(b).into())
}
