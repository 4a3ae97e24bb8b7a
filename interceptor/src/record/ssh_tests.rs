//! The record of an SSH session, read in every way there is.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;

use super::event::*;
use super::reader::{Filter, Reader};
use super::*;
use crate::config::Record;

const EVIL: &str = "\u{1b}]52;c;cm0=\u{7}\u{1b}[6n\u{202e}";

fn request(
    n: u64,
    ch: u32,
    verdict: &'static str,
    class: &'static str,
    text: &str,
) -> Request<'static> {
    Request {
        n,
        verdict: verdict.into(),
        class: class.into(),
        ch: Some(ch),
        observed: false,
        via: "ssh".into(),
        rules: Cow::Owned(vec!["ops".into()]),
        policy: "abc123".into(),
        code: None,
        message: None,
        text: text.to_owned().into(),
        text_bytes: None,
        values: Cow::Borrowed(&[]),
        hmac: "00".into(),
        masks: Cow::Borrowed(&[]),
    }
}

/// A session of an agent, event by event, with a clock of its own.
struct Script {
    log: SessionLog,
    now_us: i64,
    offsets: std::collections::HashMap<(u32, &'static str), u64>,
}

impl Script {
    fn new(recorder: &Recorder) -> Self {
        let now_us = 1_700_000_000_000_000;
        let log = recorder
            .begin(Opening {
                id: ulid::Ulid::new(),
                ts_us: now_us,
                host: "testhost".into(),
                service: "host-ssh".into(),
                protocol: "ssh".into(),
                source: "10.0.0.1:4711".into(),
                original_dst: "10.0.0.2:22".into(),
                mode: "enforce".into(),
                peer_uid: None,
            })
            .unwrap();
        let mut script = Self { log, now_us, offsets: Default::default() };
        script.add(&Admission {
            verdict: "allow".into(),
            role: "deploy".into(),
            database: "".into(),
            client: Some("SSH-2.0-OpenSSH_9.2".into()),
            parameters: Default::default(),
            rules: Cow::Owned(vec![]),
            policy: "1".into(),
            message: None,
            tls: None,
            observed: false,
        });
        script
    }

    fn wait(&mut self, ms: i64) -> &mut Self {
        self.now_us += ms * 1000;
        self
    }

    fn add<B: Body>(&mut self, body: &B) -> &mut Self {
        self.log.append(&Event::at(self.now_us, body)).unwrap();
        self
    }

    fn open(&mut self, ch: u32) -> &mut Self {
        self.add(&ChannelOpen { ch, kind: "session".into(), detail: None })
    }

    fn data(&mut self, ch: u32, stream: &'static str, data: &[u8]) -> &mut Self {
        let offset = self.offsets.entry((ch, stream)).or_default();
        let bytes = data.len() as u64;
        let event = ChannelData {
            ch,
            stream: stream.into(),
            offset: *offset,
            bytes,
            redacted: false,
            truncated: false,
        };
        *offset += bytes;
        self.log.append(&Event::at(self.now_us, &event).with_data(data)).unwrap();
        self
    }

    fn exit(&mut self, ch: u32, n: u64, status: Option<u32>, signal: Option<&str>) -> &mut Self {
        let signal = signal.map(|s| s.to_owned().into());
        self.add(&ChannelExit { ch, n, status, signal, duration_us: 1_500_000 })
    }

    fn close(&mut self, ch: u32, masked: u64) -> &mut Self {
        self.add(&ChannelClose {
            ch,
            bytes_in: 3,
            bytes_out: 120,
            bytes_err: 7,
            masked,
            ..Default::default()
        })
    }

    fn end(self) {
        self.log.seal(&End::because("client")).unwrap();
    }
}

/// A command that was held, one that was refused, a file, a forward.
fn commands(recorder: &Recorder) {
    let mut s = Script::new(recorder);
    s.open(0).wait(10).add(&request(1, 0, "hold", "exec", "systemctl restart app\nid"));
    s.add(&HoldOpen {
        n: 1,
        id: "h-7k2m9q".into(),
        rules: Cow::Owned(vec!["hold-restart".into()]),
        deadline_us: 1_700_000_300_000_000,
    });
    s.wait(2500).add(&HoldDecided {
        n: 1,
        id: "h-7k2m9q".into(),
        outcome: "granted".into(),
        by: Some("dana".into()),
        scope: Some("once".into()),
        reason: None,
        waited_us: 2_500_000,
    });
    let euro = "10 €".as_bytes();
    s.data(0, "in", b"yes").wait(40).data(0, "out", &euro[..4]).wait(5);
    s.data(
        0,
        "out",
        &[&euro[4..], EVIL.as_bytes(), b"\ncard [redacted]\nNeed", b"le in a"].concat(),
    );
    s.data(0, "out", b" haystack").data(0, "err", b"warning: old\n");
    s.exit(0, 1, Some(3), None).close(0, 1).wait(100);
    s.open(1).add(&{
        let mut denied = request(2, 1, "deny", "exec", "rm -rf /");
        denied.message = Some("denied by rule \"no-rm\"".into());
        denied
    });
    s.open(2).add(&request(3, 2, "allow", "sftp", "open /etc/motd"));
    s.add(&FileDone {
        n: 3,
        ch: 2,
        op: "read".into(),
        path: "/etc/motd".into(),
        bytes: 286,
        sha256: "ab".repeat(32).into(),
        complete: true,
    });
    s.add(&ChannelOpen {
        ch: 3,
        kind: "direct-tcpip".into(),
        detail: Some("10.0.0.9:5432".into()),
    });
    s.add(&request(4, 3, "deny", "forward", "10.0.0.9:5432"));
    s.open(4).add(&request(5, 4, "allow", "exec", "sleep 99"));
    s.data(4, "out", b"binary\0data").exit(4, 5, None, Some("TERM")).close(4, 0);
    s.end();
}

/// A shell at a terminal, beside a command.
fn shell(recorder: &Recorder) {
    let mut s = Script::new(recorder);
    s.open(0).add(&request(1, 0, "allow", "exec", "uptime")).data(0, "out", b"up 3 days\n");
    s.open(1).add(&ChannelPty { ch: 1, term: "xterm".into(), cols: 100, rows: 30 });
    s.add(&request(2, 1, "allow", "shell", ""));
    s.wait(250).data(1, "out", b"\x1b[1m$\x1b[0m ").wait(1000).data(1, "in", b"ls\r");
    s.data(1, "out", format!("l{EVIL}s\r\n\x1b[?1049h\x1b[2J").as_bytes());
    s.wait(500).add(&ChannelResize { ch: 1, cols: 120, rows: 40 });
    s.add(&ChannelData {
        ch: 1,
        stream: "in".into(),
        offset: 3,
        bytes: 8,
        redacted: true,
        truncated: false,
    });
    s.add(&ChannelSignal { ch: 1, name: "INT".into() });
    s.add(&Alert { code: "TOKEN_COPIED".into(), message: EVIL.into() });
    s.wait(33).data(1, "out", "schl\u{fc}ss \x1b[?1049l\r\n".as_bytes());
    s.exit(1, 2, Some(0), None).close(1, 2);
    s.end();
}

fn recorded(dir: &Path, write: fn(&Recorder)) -> (Reader, Summary) {
    let recorder = Recorder::open_with(dir, "testhost", &Record::default(), 64 << 10).unwrap();
    write(&recorder);
    recorder.flush().unwrap();
    let reader = Reader::open(dir, &|| Ok(())).unwrap();
    let session = reader.find("1").unwrap();
    (reader, session)
}

fn replayed(write: fn(&Recorder), channel: Option<u32>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (reader, _) = recorded(dir.path(), write);
    let mut out = Vec::new();
    let pace = replay::Pace::at_once();
    let mut player = replay::Player::new(&mut out, terminal::Style::plain(), pace).only(channel);
    reader.events(1, 0, |e| player.play(e).unwrap()).unwrap();
    player.finish().unwrap();
    String::from_utf8(out).unwrap()
}

fn cast(write: fn(&Recorder), channel: Option<u32>) -> (Value, Vec<(f64, String, String)>) {
    let dir = tempfile::tempdir().unwrap();
    let (reader, session) = recorded(dir.path(), write);
    let mut out = Vec::new();
    export::session(&reader, &session, export::Format::Asciicast, channel, &mut out).unwrap();
    strict(&String::from_utf8(out).unwrap())
}

/// Reads an asciicast v3 and takes nothing that the format does not say.
fn strict(text: &str) -> (Value, Vec<(f64, String, String)>) {
    assert!(text.ends_with('\n'));
    let mut lines = text.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    let known =
        ["version", "term", "timestamp", "idle_time_limit", "command", "title", "env", "tags"];
    let fields = header.as_object().unwrap();
    assert!(fields.keys().all(|key| known.contains(&key.as_str())), "{header}");
    assert_eq!(header["version"], 3);
    let size = |v: &Value| v.as_u64().is_some_and(|n| (1..=u64::from(u16::MAX)).contains(&n));
    assert!(size(&header["term"]["cols"]) && size(&header["term"]["rows"]), "{header}");
    assert!(header["timestamp"].is_u64());
    let events: Vec<_> = lines
        .map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            let [interval, code, data] = &event.as_array().unwrap()[..] else {
                panic!("{line}");
            };
            let interval = interval.as_f64().unwrap();
            assert!(interval.is_finite() && interval >= 0.0, "{line}");
            let (code, data) = (code.as_str().unwrap(), data.as_str().unwrap());
            match code {
                "o" | "i" | "m" => {}
                "r" => {
                    let (cols, rows) = data.split_once('x').unwrap();
                    assert!(cols.parse::<u16>().is_ok() && rows.parse::<u16>().is_ok(), "{line}");
                }
                "x" => assert!(data.parse::<u32>().is_ok(), "{line}"),
                _ => panic!("{line}"),
            }
            (interval, code.to_owned(), data.to_owned())
        })
        .collect();
    let exits = events.iter().filter(|(_, code, _)| code == "x").count();
    assert!(exits == 0 || (exits == 1 && events.last().unwrap().1 == "x"));
    (header, events)
}

fn of<'e>(events: &'e [(f64, String, String)], code: &str) -> Vec<&'e str> {
    events.iter().filter(|(_, c, _)| c == code).map(|(_, _, data)| data.as_str()).collect()
}

#[test]
fn commands_are_replayed_with_what_they_printed_and_how_they_ended() {
    let shown = replayed(commands, None);
    for part in [
        "channel 0\ndeploy@host-ssh$ systemctl restart app\n",
        "-> id\nhold by rule ops\nheld as h-7k2m9q",
        "h-7k2m9q granted by dana (once) after 2.5 s\n-- 3 bytes of input\n10 €",
        "\ncard [redacted]\nNeedle in a haystack",
        "warning: old\n-- exit 3 after 1.5 s\n-- channel closed: 3 bytes in, 120 out, 7 err, 1 values masked\n",
        "channel 1\ndeploy@host-ssh$ rm -rf /\ndeny by rule ops: denied by rule \"no-rm\"",
        "channel 2\nsftp> open /etc/motd\n-- read /etc/motd: 286 bytes, sha256 abab",
        "channel 3\n-- direct-tcpip to 10.0.0.9:5432\n",
        "-- 11 bytes that are not text\n-- killed by TERM after 1.5 s\n",
    ] {
        assert!(shown.contains(part), "no {part:?} in:\n{shown}");
    }
    assert!(!shown.chars().any(|c| c != '\n' && c.is_control()), "{shown:?}");
    assert!(!shown.contains('\u{202e}'));
}

#[test]
fn one_channel_is_replayed_without_the_others() {
    let shown = replayed(commands, Some(4));
    assert!(shown.contains("sleep 99") && shown.contains("killed by TERM"));
    for other in ["systemctl", "h-7k2m9q", "rm -rf", "motd", "direct-tcpip", "channel 4\n"] {
        assert!(!shown.contains(other), "{other:?} in:\n{shown}");
    }
}

#[test]
fn a_terminal_is_replayed_as_one_and_only_its_picture_acts() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, session) = recorded(dir.path(), shell);
    assert_eq!(replay::first_terminal(&reader, &session).unwrap(), Some(1));
    let shown = replayed(shell, Some(1));
    let picture = "\x1b[1m$\x1b[m l\u{202e}s\r\n\x1b[?1049h\x1b[2Jschlüss \x1b[?1049l\r\n";
    assert!(shown.contains(picture), "{shown:?}");
    assert!(!shown.contains("\x1b]") && !shown.contains("\x1b[6n") && !shown.contains("uptime"));
    let (before, after) = shown.split_once(picture).unwrap();
    assert!(before.ends_with("-- terminal of 100x30, xterm\ndeploy@host-ssh$ \n"), "{before:?}");
    assert!(after.starts_with("\x1b[0m") && after.contains("-- exit 0 after 1.5 s"), "{after:?}");
}

#[test]
fn a_terminal_becomes_an_asciicast() {
    let (header, events) = cast(shell, None);
    assert_eq!(header["term"], serde_json::json!({ "cols": 100, "rows": 30, "type": "xterm" }));
    assert_eq!(header["timestamp"], 1_700_000_000);
    assert_eq!(
        of(&events, "o").concat(),
        "\x1b[1m$\x1b[m l\u{202e}s\r\n\x1b[?1049h\x1b[2Jschlüss \x1b[?1049l\r\n"
    );
    assert_eq!(of(&events, "i"), ["ls\r"]);
    assert_eq!(of(&events, "r"), ["120x40"]);
    assert_eq!(of(&events, "x"), ["0"]);
    let markers = of(&events, "m").join("\n");
    for part in [
        "allow by ops: shell",
        "8 bytes typed unseen",
        "signal INT",
        "TOKEN_COPIED",
        "2 values masked",
    ] {
        assert!(markers.contains(part), "no {part:?} in {markers}");
    }
    let took: f64 = events.iter().map(|(interval, ..)| interval).sum();
    assert!((took - 1.783).abs() < 1e-9, "{took}");
}

#[test]
fn commands_become_an_asciicast_with_markers() {
    let (header, events) = cast(commands, Some(0));
    assert_eq!(header["command"], "systemctl restart app\nid");
    let shown = of(&events, "o").concat();
    assert!(shown.starts_with("$ systemctl restart app\r\nid\r\n10 €"), "{shown:?}");
    assert!(shown.contains("\r\ncard [redacted]\r\nNeedle in a haystack"), "{shown:?}");
    assert!(!shown.contains("\x1b]") && !shown.contains('\u{fffd}'));
    assert_eq!(of(&events, "i"), ["yes"]);
    assert_eq!(of(&events, "x"), ["3"]);
    let markers = of(&events, "m").join("\n");
    for part in [
        "hold by ops: exec",
        "held as h-7k2m9q by hold-restart",
        "granted by dana",
        "1 values masked",
    ] {
        assert!(markers.contains(part), "no {part:?} in {markers}");
    }
    let (_, all) = cast(commands, None);
    assert_eq!(of(&all, "x"), ["143"]);
    assert!(of(&all, "m").iter().any(|m| m.contains("deny by ops: exec rm -rf /")));
    let dir = tempfile::tempdir().unwrap();
    let (reader, session) = recorded(dir.path(), commands);
    let to = &mut Vec::new();
    let missing = export::session(&reader, &session, export::Format::Asciicast, Some(9), to);
    assert!(missing.unwrap_err().to_string().contains("no channel 9"));
}

#[test]
fn output_is_found_as_a_person_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, _) = recorded(dir.path(), commands);
    let found = |text: &str| {
        let filter = Filter { limit: 9, ..Filter::default() };
        reader.search_output(text, &filter).unwrap()
    };
    let hits = found("needle IN a haystack");
    assert_eq!(hits.len(), 1);
    assert_eq!(hits[0].body["text"], "Needle in a haystack");
    assert_eq!((&hits[0].body["ch"], &hits[0].body["stream"]), (&0.into(), &"out".into()));
    assert_eq!(found("10 €").len(), 1);
    assert_eq!(found("old").len(), 1);
    assert_eq!(found("cm0").len(), 0, "what acts is not read");
    assert_eq!(found("nothing of the kind").len(), 0);
}

#[test]
fn ssh_has_its_own_classes_in_ocsf() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, session) = recorded(dir.path(), commands);
    let mut out = Vec::new();
    export::session(&reader, &session, export::Format::Ocsf, None, &mut out).unwrap();
    let events: Vec<Value> = String::from_utf8(out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let seen: Vec<(u64, u64, u64)> = events
        .iter()
        .map(|e| {
            let n = |k: &str| e[k].as_u64().unwrap();
            assert_eq!(n("type_uid"), n("class_uid") * 100 + n("activity_id"));
            assert!(e.get("database").is_none());
            (n("class_uid"), n("activity_id"), e["status_id"].as_u64().unwrap_or(0))
        })
        .collect();
    assert_eq!(
        seen,
        [
            (4007, 1, 1),
            (1007, 1, 99),
            (6003, 3, 1),
            (1007, 1, 2),
            (1001, 14, 1),
            (1001, 2, 1),
            (4007, 5, 2),
            (1007, 1, 1),
            (4007, 2, 1),
        ]
    );
    assert_eq!(events[1]["exit_code"], 3);
    assert_eq!(events[1]["process"]["cmd_line"], "systemctl restart app\nid");
    assert_eq!(events[5]["file"]["hashes"][0]["value"], "ab".repeat(32));
    assert_eq!(events[7]["unmapped"]["signal"], "TERM");
}
