//! Masked streams: how they are cut changes nothing, and no bytes make either masker panic.
#![no_main]

use std::sync::{Arc, LazyLock};

use bytes::BytesMut;
use interceptor::mask::{Detectors, HashKey, Kind, MAX_HELD, Method, StreamMasker, TerminalMasker};
use libfuzzer_sys::fuzz_target;

static DETECTORS: LazyLock<Arc<Detectors>> = LazyLock::new(|| {
    let kinds: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, Method::Redact)).collect();
    Arc::new(Detectors::new(&kinds, Arc::new(HashKey::from_bytes(&[7; 32]))))
});

fn masked(pieces: &[&[u8]]) -> BytesMut {
    let mut masker = StreamMasker::new(DETECTORS.clone());
    let mut out = BytesMut::new();
    for piece in pieces {
        masker.push(piece, &mut out);
        assert!(masker.held() <= MAX_HELD);
    }
    masker.flush(&mut out);
    assert_eq!(masker.held(), 0);
    out
}

fuzz_target!(|data: &[u8]| {
    // The first bytes say how long the pieces are.
    let Some((sizes, text)) = data.split_first_chunk::<3>() else { return };
    let mut rest = text;
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at(rest.len().min(usize::from(*size) + 1));
        pieces.push(piece);
        rest = behind;
    }
    if text.len() <= MAX_HELD {
        assert_eq!(masked(&pieces), masked(&[text]));
    } else {
        let _ = masked(&pieces);
    }
    let mut masker = TerminalMasker::new(DETECTORS.clone());
    masker.resize(u32::from(sizes[0]));
    let mut out = BytesMut::new();
    for piece in pieces {
        masker.push(piece, &mut out);
        assert!(masker.held() <= MAX_HELD);
    }
    masker.flush(&mut out);
    assert_eq!(masker.held(), 0);
});
