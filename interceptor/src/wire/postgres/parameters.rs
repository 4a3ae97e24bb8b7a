//! The parameters of a startup packet: which of them are settings to be judged, and what of them
//! goes on to the service.

use super::relay;
use super::startup::Startup;

/// Settings that no policy needs to judge: they change how values look, not what is read.
pub(super) const HARMLESS: &[&str] = &[
    "application_name",
    "datestyle",
    "timezone",
    "intervalstyle",
    "extra_float_digits",
    "bytea_output",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "geqo",
    "jit",
    "client_min_messages",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "default_transaction_isolation",
    "default_transaction_read_only",
];

/// All settings in a startup packet: its parameters and those inside `options`.
pub(super) fn settings_of(startup: &Startup) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    for (name, value) in &startup.parameters {
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => settings.extend(options(value).unwrap_or_default()),
            _ => settings.push((name.clone(), value.clone())),
        }
    }
    settings
}

/// The `-c name=value` and `--name=value` of an `options` parameter, split as the server does
/// (spaces, backslash escapes). `None` for anything else.
pub fn options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--") {
            Some(long) => long.to_owned(),
            None if word == "-c" => words.next()?,
            None => word.strip_prefix("-c")?.to_owned(),
        };
        let (name, value) = setting.split_once('=')?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(settings)
}

pub(super) fn upstream_parameters(
    startup: &Startup,
    user: &str,
    database: &str,
    prefix: &str,
) -> Result<Vec<(String, String)>, String> {
    let mut parameters =
        vec![("user".to_owned(), user.to_owned()), ("database".to_owned(), database.to_owned())];
    let own = startup.parameter("application_name").unwrap_or_default();
    parameters.push(("application_name".into(), relay::application_name(prefix, own)));
    for (name, value) in &startup.parameters {
        if matches!(name.as_str(), "user" | "database" | "application_name" | "replication") {
            continue;
        }
        if name == "options" {
            let inner =
                options(value).ok_or("`options` may hold only -c name=value and --name=value")?;
            // One by one, and never `application_name`, which carries the session's id.
            let inner =
                inner.into_iter().filter(|(n, _)| !n.eq_ignore_ascii_case("application_name"));
            parameters.extend(inner);
        } else {
            parameters.push((name.clone(), value.clone()));
        }
    }
    Ok(parameters)
}

pub(super) fn is_off(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "off" | "false" | "no" | "0" | "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_as_the_server_splits_them() {
        let split = options(r"-c search_path=a,b --statement-timeout=5 -cwork_mem=1\ MB").unwrap();
        let expected = [("search_path", "a,b"), ("statement_timeout", "5"), ("work_mem", "1 MB")];
        assert_eq!(split.len(), expected.len());
        for ((n, v), (en, ev)) in split.iter().zip(expected) {
            assert_eq!((n.as_str(), v.as_str()), (en, ev));
        }
        assert!(options("-O").is_none());
        assert!(options("-c").is_none());
    }
}
