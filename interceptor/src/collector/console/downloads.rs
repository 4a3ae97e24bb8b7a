//! A session as a file: JSON lines, OCSF, asciicast.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::runtime::Handle;
use tokio_util::io::ReaderStream;

use super::fault::Fault;
use super::find::{self, Found};
use super::guard::Viewer;
use super::{Console, blocking};
use crate::collector::audit::{self, Entry};
use crate::record::Reader;
use crate::record::export::{self, Format};

/// Bytes that wait for a slow reader.
const WINDOW: usize = 256 * 1024;

/// Which channel of a recording.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Which {
    channel: Option<u32>,
}

/// `GET /sessions/{id}/download/{format}`.
pub async fn session(
    State(console): State<Console>,
    Viewer(login): Viewer,
    Path((name, format)): Path<(String, String)>,
    Query(which): Query<Which>,
) -> Result<Response, Fault> {
    let (format, kind, end) = match format.as_str() {
        "jsonl" => (Format::Jsonl, "application/jsonl", "jsonl"),
        "ocsf" => (Format::Ocsf, "application/jsonl", "ocsf.jsonl"),
        "asciicast" => (Format::Asciicast, "application/x-asciicast", "cast"),
        _ => return Err(Fault::not_found("There are jsonl, ocsf and asciicast.").of(&login)),
    };
    let Ok(place) = Arc::clone(&console.downloads).try_acquire_owned() else {
        let text = "Too many downloads are under way. Try again in a moment.";
        return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, text).of(&login));
    };
    let found =
        find::session(console.collector(), name).await.map_err(|m| Fault::from(m).of(&login))?;
    let collector = Arc::clone(console.collector());
    // Whether there is anything to give is known before the first byte, and it is read as it
    // stood then: what retention deletes meanwhile is whole here.
    let (found, records) = blocking(move || {
        if format == Format::Asciicast && found.protocol != "ssh" {
            return Err(Fault::not_found("This session has no terminal: take jsonl."));
        }
        let records = found.reader(&collector)?;
        // What cannot be read at all is a page that says so.
        records.try_recording(found.number)?;
        Ok((found, records))
    })
    .await
    .map_err(|f| f.of(&login))?;
    let file = format!("{}.{end}", found.session.replace(|c: char| !c.is_ascii_alphanumeric(), ""));
    let (who, target) = (login.person.who(), found.session.clone());
    let detail = serde_json::json!({ "format": end, "host": found.host_name });
    let note = move |db: &crate::collector::db::Connection| {
        audit::append(
            db,
            &Entry { who: &who, what: "session.exported", target: &target, detail: &detail },
        )
    };
    console.collector().central.write(note).await?;
    let (writer, reader) = tokio::io::duplex(WINDOW);
    let whole = Arc::new(AtomicBool::new(false));
    let reader = Whole { reader, whole: Arc::clone(&whole) };
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut out = Pipe { writer, handle };
        match write(&records, &found, format, which.channel, &mut out) {
            Ok(()) => whole.store(true, Ordering::Release),
            Err(error) => {
                tracing::info!(%error, session = %found.session, "a download ended early");
            }
        }
        drop(place);
    });
    let mut answer = Body::from_stream(ReaderStream::new(reader)).into_response();
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let name = format!("attachment; filename=\"{file}\"");
    if let Ok(name) = HeaderValue::try_from(name) {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    Ok(answer)
}

fn write(
    reader: &Reader,
    found: &Found,
    format: Format,
    channel: Option<u32>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let session = reader.find(&found.number.to_string())?;
    let mut out = io::BufWriter::with_capacity(64 * 1024, out);
    export::session(reader, &session, format, channel, &mut out)?;
    Ok(out.flush()?)
}

/// What comes out of a pipe; one whose writer gave up ends as a broken transfer, so that nobody
/// takes a part for the whole.
struct Whole {
    reader: DuplexStream,
    whole: Arc<AtomicBool>,
}

impl AsyncRead for Whole {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.reader).poll_read(context, buffer);
        let ended = matches!(polled, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        if ended && !self.whole.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::Error::other(
                "the recording could not be read to its end",
            )));
        }
        polled
    }
}

/// Writes towards a slow reader from a thread that may block.
struct Pipe {
    writer: DuplexStream,
    handle: Handle,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.handle.block_on(self.writer.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_download_whose_writer_gave_up_is_no_whole_one() {
        for gives_up in [false, true] {
            let (writer, reader) = tokio::io::duplex(16);
            let whole = Arc::new(AtomicBool::new(false));
            let mut reader = Whole { reader, whole: Arc::clone(&whole) };
            let handle = Handle::current();
            let writing = tokio::task::spawn_blocking(move || {
                let mut out = Pipe { writer, handle };
                out.write_all(&[7; 100]).unwrap();
                whole.store(!gives_up, Ordering::Release);
            });
            let mut got = Vec::new();
            let end = reader.read_to_end(&mut got).await;
            writing.await.unwrap();
            assert_eq!((got.len(), end.is_err()), (100, gives_up));
        }
    }
}
