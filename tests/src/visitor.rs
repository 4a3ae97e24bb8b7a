//! A plain HTTP client with a browser's manners where it matters: it keeps cookies by host, and
//! follows redirects when asked to. Everything else is as the test writes it, so that a test can
//! be a bad client too. Plain HTTP on loopback only.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// A client with its cookies.
#[derive(Debug, Clone, Default)]
pub struct Visitor {
    /// Host with port, then name: value and attributes.
    pub cookies: BTreeMap<String, BTreeMap<String, (String, String)>>,
    /// Where the last answer came from, for relative redirects.
    pub at: String,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
    /// Where it came from.
    pub url: String,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first header of a name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| self.text())
    }

    /// The value of the hidden field `csrf` of the first form.
    pub fn csrf(&self) -> Option<String> {
        let text = self.text();
        let (_, rest) = text.split_once("name=\"csrf\" value=\"")?;
        rest.split_once('"').map(|(token, _)| token.to_owned())
    }
}

impl Visitor {
    /// GET without following anything.
    pub fn get(&mut self, url: &str) -> Result<Answer> {
        self.send("GET", url, &[], b"")
    }

    /// GET, then every redirect.
    pub fn visit(&mut self, url: &str) -> Result<Answer> {
        let mut answer = self.get(url)?;
        for _ in 0..20 {
            let Some(next) = answer.header("location").filter(|_| answer.status / 100 == 3) else {
                return Ok(answer);
            };
            let next = self.absolute(next);
            answer = self.get(&next)?;
        }
        bail!("more than 20 redirects, the last to {}", answer.url)
    }

    /// POST of a form as one of the site's own pages sends it.
    pub fn post(&mut self, url: &str, form: &[(&str, &str)]) -> Result<Answer> {
        let headers = [("Sec-Fetch-Site", "same-origin"), ("Origin", "null")];
        self.post_with(url, form, &headers)
    }

    /// POST of a form with other headers.
    pub fn post_with(
        &mut self,
        url: &str,
        form: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let pairs: Vec<String> =
            form.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
        let mut all = vec![("Content-Type", "application/x-www-form-urlencoded")];
        all.extend_from_slice(headers);
        self.send("POST", url, &all, pairs.join("&").as_bytes())
    }

    /// Any request.
    pub fn send(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let (host, path) = split(url)?;
        let mut stream = TcpStream::connect(&host).with_context(|| host.clone())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(self.head(method, &host, &path, headers, body.len()).as_bytes())?;
        stream.write_all(body)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let answer = read(&bytes, url)?;
        self.keep(&host, &answer);
        self.at = url.to_owned();
        Ok(answer)
    }

    /// Opens a stream of events and gives it back with the head still to be read.
    pub fn stream(&self, url: &str) -> Result<TcpStream> {
        let (host, path) = split(url)?;
        let mut stream = TcpStream::connect(&host)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(self.head("GET", &host, &path, &[], 0).as_bytes())?;
        Ok(stream)
    }

    fn head(
        &self,
        method: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        length: usize,
    ) -> String {
        let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            text.push_str(&format!("Host: {host}\r\n"));
        }
        if method != "GET" {
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        let cookies = self.cookies.get(host).into_iter().flatten();
        let pairs: Vec<String> = cookies.map(|(n, (v, _))| format!("{n}={v}")).collect();
        if !pairs.is_empty() {
            text.push_str(&format!("Cookie: {}\r\n", pairs.join("; ")));
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text + "\r\n"
    }

    fn keep(&mut self, host: &str, answer: &Answer) {
        let jar = self.cookies.entry(host.to_owned()).or_default();
        for (_, value) in answer.headers.iter().filter(|(n, _)| n == "set-cookie") {
            let (pair, attributes) = value.split_once(';').unwrap_or((value, ""));
            let Some((name, value)) = pair.split_once('=') else { continue };
            let gone = value.is_empty() || attributes.contains("Max-Age=0");
            match gone {
                true => drop(jar.remove(name)),
                false => drop(jar.insert(name.into(), (value.into(), attributes.into()))),
            }
        }
    }

    fn absolute(&self, next: &str) -> String {
        match (next.starts_with("http://"), split(&self.at)) {
            (false, Ok((host, _))) => format!("http://{host}{next}"),
            _ => next.to_owned(),
        }
    }
}

fn split(url: &str) -> Result<(String, String)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url}: not plain HTTP"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.split('#').next().unwrap_or_default();
    Ok((host.to_owned(), format!("/{path}")))
}

fn encode(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    text.bytes()
        .map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn read(bytes: &[u8], url: &str) -> Result<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("no head")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).context("no status")?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
        .collect();
    let rest = &bytes[end + 4..];
    let chunked = headers.iter().any(|(n, v)| n == "transfer-encoding" && v == "chunked");
    let body = if chunked { unchunk(rest)? } else { rest.to_vec() };
    Ok(Answer { status: status.parse()?, headers, body, url: url.to_owned() })
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").context("a chunk without length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line])?.trim(), 16)?;
        rest = &rest[line + 2..];
        if length == 0 {
            return Ok(out);
        }
        ensure!(rest.len() >= length + 2, "a chunk was cut");
        out.extend_from_slice(&rest[..length]);
        rest = &rest[length + 2..];
    }
}
