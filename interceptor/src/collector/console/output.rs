//! Output and input of channels as text: what a person would have read.

use crate::record::event::ChannelData;
use crate::record::screen::Text;

use super::text::{BLOCK, Shown, bytes};

/// Most characters that are shown of one piece.
const MOST: usize = 32 * 1024;

/// One stream of a channel, as long as nothing else comes between.
pub struct Output {
    ch: u32,
    stream: &'static str,
    bytes: u64,
    redacted: bool,
    reader: Text,
    text: String,
    partial: bool,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Output({}, {}, {} bytes)", self.ch, self.stream, self.bytes)
    }
}

impl Output {
    /// Begins with the stream of a piece.
    pub fn new(d: &ChannelData<'_>) -> Self {
        let stream = match &*d.stream {
            "in" => "in",
            "err" => "err",
            _ => "out",
        };
        Self {
            ch: d.ch,
            stream,
            bytes: 0,
            redacted: false,
            reader: Text::default(),
            text: String::new(),
            partial: false,
        }
    }

    /// Whether a piece goes on where this ends.
    pub fn takes(&self, d: &ChannelData<'_>) -> bool {
        self.ch == d.ch && self.stream == d.stream
    }

    /// Takes a piece.
    pub fn push(&mut self, d: &ChannelData<'_>, data: &[u8]) {
        self.bytes = self.bytes.saturating_add(d.bytes);
        self.redacted |= d.redacted;
        if self.text.len() < MOST {
            self.text.push_str(&self.reader.push(data));
        } else {
            self.partial = true;
        }
    }

    /// `in`, `out` or `err`.
    pub fn stream(&self) -> &'static str {
        self.stream
    }

    /// In words.
    pub fn words(&self) -> String {
        let what = match self.stream {
            "in" => "typed",
            "err" => "errors",
            _ => "output",
        };
        let hidden = if self.redacted { ", typed unseen and not kept" } else { "" };
        format!("{what}, channel {}, {}{hidden}", self.ch, bytes(self.bytes))
    }

    /// What there is to read.
    pub fn text(&self) -> Shown {
        Shown::lines(&self.text)
    }

    /// Bytes that it has on a page, about.
    pub fn size(&self) -> usize {
        self.text.len().min(BLOCK)
    }

    /// Whether some of it is not shown.
    pub fn partial(&self) -> bool {
        self.partial
    }
}
