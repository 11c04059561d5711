//! `otedama top`: a running server in one screen, from its stats endpoint alone.
//!
//! It asks `/api/stats`, `/api/status` and `/metrics` once an interval and shows what changed in between, so it costs the server three answers of its stats thread
//! and works from anywhere that reaches the endpoint. A server that is away is said to be away and asked again.
mod page;
mod screen;

use crate::status::{self, StatusError};
use page::{Page, Reading};
use screen::{Key, Screen};
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Between two readings.
const INTERVAL: Duration = Duration::from_secs(1);
/// How soon a key, a signal or another size of the window is seen.
const LOOK: Duration = Duration::from_millis(50);

/// What was asked for.
#[derive(Clone, Debug)]
pub struct TopSettings {
    /// `host:port` of the stats endpoint.
    pub stats: String,
    /// Two readings, one page, and the end.
    pub once: bool,
    /// One JSON object per page instead of a screen.
    pub json: bool,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// `--url` is no address of a stats endpoint.
    #[error("--url {0:?} is no stats endpoint: give http://host:port, as `otedama serve` prints it")]
    Url(String),
    /// A live view needs a terminal.
    #[error("standard output is no terminal: use --once for one page, or --json for a line a second")]
    NoTerminal,
    /// The server did not answer.
    #[error(transparent)]
    Away(#[from] StatusError),
    /// The terminal could not be used.
    #[error("using the terminal failed")]
    Terminal(#[source] std::io::Error),
    /// Standard output could not be written.
    #[error("writing to standard output failed")]
    Output(#[source] std::io::Error),
}

impl TopError {
    /// 2 usage, 3 environment.
    pub fn code(&self) -> u8 {
        if matches!(self, Self::Url(_) | Self::NoTerminal) { 2 } else { 3 }
    }
}

/// `host:port` of `http://host:port/`, or of `host:port` itself.
pub fn address_of(url: &str) -> Result<String, TopError> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let address = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = address.rsplit_once(':').ok_or_else(|| TopError::Url(url.to_owned()))?;
    let fits = !host.is_empty() && !host.contains(['/', '@']) && port.parse::<u16>().is_ok();
    if fits { Ok(address.to_owned()) } else { Err(TopError::Url(url.to_owned())) }
}

/// Runs until `stop` is set, `q` is pressed, nobody reads the output any more, or, with `once`, one page has been printed.
pub fn run(settings: &TopSettings, stop: &AtomicBool) -> Result<(), TopError> {
    if !settings.once && !settings.json {
        return if std::io::stdout().is_terminal() { live(&settings.stats, stop) } else { Err(TopError::NoTerminal) };
    }
    let mut before = read(&settings.stats)?;
    loop {
        let next = Instant::now() + INTERVAL;
        while Instant::now() < next {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        let now = read(&settings.stats)?;
        let page = Page::between(&before, &now);
        let text = if settings.json {
            format!("{}\n", page.to_json())
        } else {
            page.lines(page::WIDTH, page::HEIGHT).iter().fold(String::new(), |text, line| text + line.text.trim_end() + "\n")
        };
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(TopError::Output)?,
        }
        if settings.once {
            return Ok(());
        }
        before = now;
    }
}

/// Everything that a page needs, as of now.
fn read(stats: &str) -> Result<Reading, StatusError> {
    let ask = |path: &str| -> Result<String, StatusError> {
        let answer = status::get(stats, path)?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        if answer.code == 200 { Ok(text) } else { Err(status::unexpected(stats, path, format!("status code {}", answer.code))) }
    };
    let json = |path: &str| -> Result<serde_json::Value, StatusError> {
        serde_json::from_str(&ask(path)?).map_err(|error| status::unexpected(stats, path, error.to_string()))
    };
    Ok(Reading::new(json("/api/stats")?, json("/api/status")?, &ask("/metrics")?))
}

fn live(stats: &str, stop: &AtomicBool) -> Result<(), TopError> {
    // A server that hangs must not keep the keys waiting: readings come from a thread of their own, which ends with the process.
    let (sender, readings) = channel();
    let asked = stats.to_owned();
    let asking = move || {
        while sender.send(read(&asked)).is_ok() {
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new().name("asking".to_owned()).spawn(asking).map_err(TopError::Terminal)?;
    let mut screen = Screen::open().map_err(TopError::Terminal)?;
    let started = Instant::now();
    let (mut last, mut page, mut away): (Option<Reading>, Option<Page>, Option<(Instant, String)>) = (None, None, None);
    loop {
        match readings.recv_timeout(LOOK) {
            Ok(Ok(now)) => {
                page = Some(Page::between(last.as_ref().unwrap_or(&now), &now));
                last = Some(now);
                away = None;
            }
            Ok(Err(error)) => {
                let since = away.map_or_else(Instant::now, |(since, _)| since);
                away = Some((since, crate::wiring::chain_of(&error)));
            }
            Err(_) => {}
        }
        if stop.load(Ordering::Relaxed) || screen.key() == Some(Key::Quit) {
            return Ok(());
        }
        let (width, height) = screen.size();
        let lines = match (&page, &away) {
            (Some(page), None) => page.lines(width, height),
            (page, Some((since, why))) => page::away(page.as_ref(), why, since.elapsed(), width, height),
            (None, None) => page::away(None, &format!("no answer yet from http://{stats}"), started.elapsed(), width, height),
        };
        screen.draw(&lines).map_err(TopError::Terminal)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_with_or_without_its_scheme_and_nonsense_is_refused() {
        for (url, address) in [
            ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
            ("http://pool.example:80", "pool.example:80"),
            ("[::1]:8080", "[::1]:8080"),
            ("localhost:1", "localhost:1"),
        ] {
            assert_eq!(address_of(url).ok().as_deref(), Some(address));
        }
        for wrong in ["", "pool", "https://pool:1", "http://:80", "http://a:b", "http://a:99999", "http://u:p@a:1", "http://a:1/x"] {
            assert!(matches!(address_of(wrong), Err(TopError::Url(_))), "{wrong}");
        }
    }

    #[test]
    fn a_server_that_is_away_is_an_error_of_the_environment() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let stats = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let settings = TopSettings { stats, once: true, json: false };
        let error = run(&settings, &AtomicBool::new(false)).expect_err("nobody listens");
        assert_eq!(error.code(), 3);
        assert!(error.to_string().contains("is otedama running"), "{error}");
    }
}
