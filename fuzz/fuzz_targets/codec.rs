//! The wire codec: whatever arrives is a message, waits for more, or is an error.
#![no_main]

use bytes::BytesMut;
use interceptor::wire::postgres::codec;
use interceptor::wire::postgres::relay::bind_values;
use interceptor::wire::postgres::scrub;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some((tag, body))) = codec::split_message(&mut buffer, 1 << 16) {
        let _ = codec::row_description(&body);
        let _ = codec::data_row(&body);
        let _ = codec::report_field(&body, b'M');
        let _ = bind_values(&body);
        let mut out = BytesMut::new();
        scrub::report(tag, &body, true, &mut out);
        // What we write can be read.
        while let Ok(Some(_)) = codec::split_message(&mut out, 1 << 20) {}
        assert!(out.is_empty());
        scrub::notification(&body, true, &mut out);
    }
});
