//! Enrolment: once, with a code from the collector and the hash of its authority.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::client::{self, ANSWER};
use super::identity::{Identity, Known, Request};
use super::{Position, ShipError};
use crate::collector::wire::{ENROL_DOMAIN, Enrol, Enrolled};
use crate::config::{Config, Ship};
use crate::record::HostKey;
use crate::record::chain::unhex;

/// Enrols this host; the name under which the collector lists it.
pub async fn enrol(
    config: &Config,
    ship: &Ship,
    code: &str,
    authority_pin: &str,
) -> Result<String, ShipError> {
    let pin = authority_pin.replace(':', "").to_ascii_lowercase();
    let pin = unhex(&pin).ok_or_else(|| {
        ShipError::Enrolment("the pin of the authority is no SHA-256 in hexadecimal".into())
    })?;
    let records = &config.paths.state;
    let owner = std::fs::metadata(records).map_err(|e| ShipError::io("find", records, e))?;
    let key = HostKey::open(records)?;
    let dir = ship.state(&config.paths);
    super::make_private(&dir)?;
    let request = Request::new()?;
    let mut enrol = Enrol {
        code: code.trim().to_owned(),
        csr_pem: request.csr_pem.clone(),
        record_key: key.public().to_base64(),
        name: config.host_name(),
        version: env!("CARGO_PKG_VERSION").into(),
        proof: String::new(),
    };
    enrol.proof = STANDARD.encode(key.sign(&[ENROL_DOMAIN, &enrol.signed()].concat()));
    let url = format!("{}/host/v1/enrol", ship.collector);
    let post = client::pinned(pin)?.post(url).timeout(ANSWER).json(&enrol);
    let enrolled: Enrolled = client::call(post).await?;
    let past_keys = past_keys(&dir, &enrolled);
    let known = Known {
        url: ship.collector.clone(),
        collector_key: enrolled.collector_key,
        log_key: enrolled.log_key,
        name: enrolled.name.clone(),
        past_keys,
    };
    check_authority(&enrolled.authority_pem, pin)?;
    Identity::keep(&dir, &request, &known, &enrolled.authority_pem, &enrolled.certificate_pem)?;
    // Another collector has nothing yet, whatever the last one acknowledged.
    super::Memory::open(&dir)?
        .acknowledge(&super::Acknowledged { position: Position::default(), at_us: 0 })?;
    give(records, &["host.key", "host.pub"], &owner)?;
    give(&dir, &[], &owner)?;
    Ok(enrolled.name)
}

/// Keys that the same collector had when this host enrolled there before: what is kept from then is
/// still its own.
fn past_keys(dir: &Path, enrolled: &Enrolled) -> Vec<String> {
    let Ok(Some(before)) = Identity::load(dir) else { return Vec::new() };
    if before.authority_pem != enrolled.authority_pem {
        return Vec::new();
    }
    let mut past = before.known.past_keys;
    past.push(before.known.collector_key);
    past.retain(|key| *key != enrolled.collector_key);
    past
}

/// The authority that is kept must be the one that was pinned.
fn check_authority(pem: &str, pin: [u8; 32]) -> Result<(), ShipError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use sha2::{Digest, Sha256};
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    if der.is_ok_and(|der| Sha256::digest(&der).as_slice() == pin) {
        return Ok(());
    }
    Err(ShipError::Enrolment("the collector sent another authority than the pinned one".into()))
}

/// What root made is the daemon's: whoever owns the records owns it.
fn give(dir: &Path, names: &[&str], owner: &std::fs::Metadata) -> Result<(), ShipError> {
    if !nix::unistd::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    // The directory is its new owner's, who may have put links to other files there.
    let give = |path: &Path| {
        lchown(path, Some(owner.uid()), Some(owner.gid()))
            .map_err(|e| ShipError::io("give", path, e))
    };
    if !names.is_empty() {
        return names.iter().try_for_each(|name| give(&dir.join(name)));
    }
    give(dir)?;
    for entry in std::fs::read_dir(dir).map_err(|e| ShipError::io("read", dir, e))? {
        give(&entry.map_err(|e| ShipError::io("read", dir, e))?.path())?;
    }
    Ok(())
}
