//! Counters, gauges and histograms in Prometheus text form.
//!
//! A handle is looked up once and then costs one atomic addition. Names and labels come from
//! the daemon's own code and configuration, never from an agent, so their number is bounded;
//! a bound stands here all the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// Most series of one metric; more are counted together under `service="other"`.
const MAX_SERIES: usize = 1000;
/// Upper bounds of histogram buckets in seconds.
const BUCKETS: [f64; 12] =
    [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0, 600.0];

/// Only ever grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }
    /// So many more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    /// Takes over a total that is counted elsewhere (by the kernel).
    pub fn set_total(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }
    /// Adds, or takes away.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    /// The value now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Times, in fixed buckets from 100 µs to 10 min.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Times>);

#[derive(Debug, Default)]
struct Times {
    /// Not cumulative; the last is everything above.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Notes one time.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = BUCKETS.iter().position(|b| seconds <= *b).unwrap_or(BUCKETS.len());
        self.0.counts[at].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

#[derive(Clone)]
enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

struct Family {
    help: &'static str,
    kind: &'static str,
    /// By rendered label set.
    series: BTreeMap<String, Series>,
}

/// All metrics of one daemon.
#[derive(Default)]
pub struct Registry(RwLock<BTreeMap<&'static str, Family>>);

impl Registry {
    /// The counter of that name (by custom ending in `_total`) and labels, made at first use.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Counter {
        match self.series(name, help, "counter", labels, || Series::Counter(Counter::default())) {
            Series::Counter(c) => c,
            _ => Counter::default(),
        }
    }

    /// The gauge of that name and labels, made at first use.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Gauge {
        match self.series(name, help, "gauge", labels, || Series::Gauge(Gauge::default())) {
            Series::Gauge(g) => g,
            _ => Gauge::default(),
        }
    }

    /// The histogram of that name (by custom ending in `_seconds`) and labels.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Histogram {
        let make = || Series::Histogram(Histogram::default());
        match self.series(name, help, "histogram", labels, make) {
            Series::Histogram(h) => h,
            _ => Histogram::default(),
        }
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        labels: &[(&'static str, &str)],
        make: impl FnOnce() -> Series,
    ) -> Series {
        debug_assert!(is_name(name), "{name:?} is no metric name");
        let mut all = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let family =
            all.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
        let mut key = render_labels(labels);
        if family.series.len() >= MAX_SERIES && !family.series.contains_key(&key) {
            key = render_labels(&[("service", "other")]);
        }
        family.series.entry(key).or_insert_with(make).clone()
    }

    /// Prometheus text exposition, version 0.0.4.
    pub fn render(&self) -> String {
        let all = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut out = String::new();
        for (name, family) in &*all {
            let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", family.kind);
            for (labels, series) in &family.series {
                match series {
                    Series::Counter(c) => line(&mut out, name, labels, c.get()),
                    Series::Gauge(g) => line(&mut out, name, labels, g.get()),
                    Series::Histogram(h) => h.render(&mut out, name, labels),
                }
            }
        }
        out
    }
}

impl Histogram {
    fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut sum = 0;
        let comma = if labels.is_empty() { "" } else { "," };
        for (n, count) in self.0.counts.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            let le = BUCKETS.get(n).map_or("+Inf".to_owned(), f64::to_string);
            line(out, &format!("{name}_bucket"), &format!("{labels}{comma}le=\"{le}\""), sum);
        }
        let seconds = Duration::from_micros(self.0.sum_us.load(Ordering::Relaxed)).as_secs_f64();
        line(out, &format!("{name}_sum"), labels, seconds);
        line(out, &format!("{name}_count"), labels, sum);
    }
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = if labels.is_empty() {
        writeln!(out, "{name} {value}")
    } else {
        writeln!(out, "{name}{{{labels}}} {value}")
    };
}

fn render_labels(labels: &[(&'static str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        debug_assert!(is_name(name) && !name.contains(':'), "{name:?} is no label name");
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// Offers the text at `http://127.0.0.1:port/metrics` until the daemon ends.
pub async fn serve_http(
    port: u16,
    render: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).await?;
    serve_http_on(listener, render).await
}

async fn serve_http_on(
    listener: tokio::net::TcpListener,
    render: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> std::io::Result<()> {
    let answer = move || {
        let text = render();
        async move { ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text) }
    };
    let app = axum::Router::new().route("/metrics", axum::routing::get(answer));
    axum::serve(listener, app).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_follows_the_exposition_format() {
        let r = Registry::default();
        r.counter(
            "interceptor_requests_total",
            "Requests\njudged.",
            &[("service", "a\"b\\c\nd"), ("outcome", "allow")],
        )
        .add(3);
        r.gauge("interceptor_live_sessions", "Open sessions.", &[]).set(-1);
        let h = r.histogram("interceptor_hold_seconds", "Waits.", &[("service", "x")]);
        h.observe(Duration::from_millis(2));
        h.observe(Duration::from_secs(3600));
        let text = r.render();
        for want in [
            "# HELP interceptor_requests_total Requests\\njudged.\n",
            "# TYPE interceptor_requests_total counter\n",
            "interceptor_requests_total{service=\"a\\\"b\\\\c\\nd\",outcome=\"allow\"} 3\n",
            "interceptor_live_sessions -1\n",
            "interceptor_hold_seconds_bucket{service=\"x\",le=\"0.001\"} 0\n",
            "interceptor_hold_seconds_bucket{service=\"x\",le=\"0.005\"} 1\n",
            "interceptor_hold_seconds_bucket{service=\"x\",le=\"+Inf\"} 2\n",
            "interceptor_hold_seconds_sum{service=\"x\"} 3600.002\n",
            "interceptor_hold_seconds_count{service=\"x\"} 2\n",
        ] {
            assert!(text.contains(want), "{want:?} is missing in:\n{text}");
        }
        let sample = regex::Regex::new(
            r#"^[a-z_:][a-z0-9_:]*(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)+\})? -?[0-9.e+-]+$"#,
        )
        .unwrap();
        for l in text.lines().filter(|l| !l.starts_with('#')) {
            assert!(sample.is_match(l), "{l}");
        }
    }

    #[test]
    fn the_same_labels_are_the_same_counter_and_series_are_bounded() {
        let r = Registry::default();
        for n in 0..MAX_SERIES + 50 {
            r.counter("x_total", "X.", &[("service", &n.to_string())]).inc();
        }
        r.counter("x_total", "X.", &[("service", "0")]).inc();
        let text = r.render();
        assert!(text.contains("x_total{service=\"0\"} 2\n"));
        assert!(text.contains("x_total{service=\"other\"} 50\n"));
    }

    #[tokio::test]
    async fn the_text_is_offered_over_http() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve_http_on(listener, || "x_total 1\n".into()));
        for (path, want) in [("/metrics", "200 OK"), ("/other", "404")] {
            let mut s = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            s.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            s.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains(want), "{answer}");
            assert_eq!(answer.contains("x_total 1\n"), path == "/metrics");
        }
        server.abort();
    }
}
