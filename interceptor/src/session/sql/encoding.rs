//! Client encodings: the decoder of each that is accepted. One in whose characters a byte can
//! look like ASCII is not, since the server would read another text than the one judged.

/// Whether no byte of a character of this encoding can look like ASCII, so that what is judged
/// is what the server reads. Names as PostgreSQL spells them, any case, with or without
/// punctuation (manual, "Supported Character Sets").
pub fn encoding_is_safe(name: &str) -> bool {
    canonical_encoding(name).is_some()
}

/// The decoder for an encoding that is accepted; `None` for one that is refused.
pub fn canonical_encoding(name: &str) -> Option<&'static encoding_rs::Encoding> {
    let name: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect();
    Some(match name.as_str() {
        "UTF8" | "UNICODE" | "SQLASCII" => encoding_rs::UTF_8,
        "LATIN1" | "ISO88591" | "WIN1252" | "WINDOWS1252" => encoding_rs::WINDOWS_1252,
        "LATIN2" | "ISO88592" => encoding_rs::ISO_8859_2,
        "LATIN3" | "ISO88593" => encoding_rs::ISO_8859_3,
        "LATIN4" | "ISO88594" => encoding_rs::ISO_8859_4,
        "LATIN5" | "ISO88599" | "WIN1254" | "WINDOWS1254" => encoding_rs::WINDOWS_1254,
        "LATIN6" | "ISO885910" => encoding_rs::ISO_8859_10,
        "LATIN7" | "ISO885913" => encoding_rs::ISO_8859_13,
        "LATIN8" | "ISO885914" => encoding_rs::ISO_8859_14,
        "LATIN9" | "ISO885915" => encoding_rs::ISO_8859_15,
        "LATIN10" | "ISO885916" => encoding_rs::ISO_8859_16,
        "ISO88595" => encoding_rs::ISO_8859_5,
        "ISO88596" => encoding_rs::ISO_8859_6,
        "ISO88597" => encoding_rs::ISO_8859_7,
        "ISO88598" => encoding_rs::ISO_8859_8,
        "WIN1250" | "WINDOWS1250" => encoding_rs::WINDOWS_1250,
        "WIN1251" | "WINDOWS1251" | "WIN" => encoding_rs::WINDOWS_1251,
        "WIN1253" | "WINDOWS1253" => encoding_rs::WINDOWS_1253,
        "WIN1255" | "WINDOWS1255" => encoding_rs::WINDOWS_1255,
        "WIN1256" | "WINDOWS1256" => encoding_rs::WINDOWS_1256,
        "WIN1257" | "WINDOWS1257" => encoding_rs::WINDOWS_1257,
        "WIN1258" | "WINDOWS1258" | "TCVN" | "ABC" | "VSCII" => encoding_rs::WINDOWS_1258,
        "WIN866" | "WINDOWS866" | "ALT" => encoding_rs::IBM866,
        "WIN874" | "WINDOWS874" => encoding_rs::WINDOWS_874,
        "KOI8R" | "KOI8" => encoding_rs::KOI8_R,
        "KOI8U" => encoding_rs::KOI8_U,
        "EUCJP" | "EUCJIS2004" => encoding_rs::EUC_JP,
        "EUCKR" => encoding_rs::EUC_KR,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_that_hide_ascii_are_refused() {
        for name in [
            "SJIS",
            "Shift_JIS",
            "BIG5",
            "GBK",
            "UHC",
            "GB18030",
            "JOHAB",
            "SHIFT_JIS_2004",
            "nonsense",
        ] {
            assert!(!encoding_is_safe(name), "{name}");
        }
        for name in
            ["UTF8", "utf-8", "UNICODE", "LATIN1", "iso-8859-15", "win1251", "SQL_ASCII", "EUC_JP"]
        {
            assert!(encoding_is_safe(name), "{name}");
        }
    }
}
