//! `otedama status`: asks the stats endpoint of a running server and prints the answer.
//!
//! A blocking GET over one socket: the command line needs no event loop, and the endpoint is our own.
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
/// No answer of the endpoint comes near this; a wrong port may send anything.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Why there is no status to print.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// `[stats] listen` is no address.
    #[error("stats address {address} cannot be resolved; set [stats] listen to host:port")]
    Address {
        /// As configured.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Nobody listens there.
    #[error("no server answers on {address}; is otedama running, and is this its [stats] listen?")]
    Connect {
        /// Where it was looked for.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke or was silent.
    #[error("reading http://{address}{path} failed")]
    Exchange {
        /// Who was asked.
        address: SocketAddr,
        /// What was asked for.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// What listens there is no stats endpoint.
    #[error("http://{address}{path} answered with something else than the stats of otedama: {what}")]
    Unexpected {
        /// Who was asked.
        address: SocketAddr,
        /// What was asked for.
        path: String,
        /// What came.
        what: String,
    },
}

/// An HTTP answer: status code and body.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Status code.
    pub code: u16,
    /// Body, at most 1 MiB.
    pub body: Vec<u8>,
}

/// GET `path` from `listen` (`host:port`; an unspecified address such as `0.0.0.0:8080` means this machine). Waits at most 5 s for each read.
pub fn get(listen: &str, path: &str) -> Result<HttpAnswer, StatusError> {
    let unresolved = |source| StatusError::Address { address: listen.to_owned(), source };
    let mut address = listen
        .to_socket_addrs()
        .map_err(unresolved)?
        .next()
        .ok_or_else(|| unresolved(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")))?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(|source| StatusError::Connect { address, source })?;
    let broken = |source| StatusError::Exchange { address, path: path.to_owned(), source };
    stream.set_read_timeout(Some(TIMEOUT)).map_err(broken)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(broken)?;
    // One write: a request in pieces would cost a packet each.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(broken)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(broken)?;
    parse(&answer).map_err(|what| StatusError::Unexpected { address, path: path.to_owned(), what })
}

/// The error for an answer that is not what this endpoint gives.
pub fn unexpected(listen: &str, path: &str, what: String) -> StatusError {
    let address = listen.to_socket_addrs().ok().and_then(|mut all| all.next()).unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    StatusError::Unexpected { address, path: path.to_owned(), what }
}

fn parse(answer: &[u8]) -> Result<HttpAnswer, String> {
    let split = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(|| "no HTTP head".to_owned())?;
    let head = std::str::from_utf8(&answer[..split]).map_err(|_| "a head that is no text".to_owned())?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let code = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| format!("the first line {first:?}"))?;
    let body = &answer[split + 4..];
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") && value.trim().parse() != Ok(body.len()) {
            return Err(format!("{} of {} bytes", body.len(), value.trim()));
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("a chunked body".to_owned());
        }
    }
    Ok(HttpAnswer { code, body: body.to_vec() })
}

/// Asks the server whose stats endpoint is `listen` and returns what to print and the exit code: 0 when miners should stay, 1 when not.
pub fn report(listen: &str, json: bool) -> Result<(String, u8), StatusError> {
    const PATH: &str = "/api/status";
    let answer = get(listen, PATH)?;
    let unexpected = |what: String| unexpected(listen, PATH, what);
    if answer.code != 200 {
        return Err(unexpected(format!("status code {}", answer.code)));
    }
    let status: Value = serde_json::from_slice(&answer.body).map_err(|error| unexpected(error.to_string()))?;
    let Some(word) = status["status"].as_str() else { return Err(unexpected("no field \"status\"".to_owned())) };
    let code = u8::from(word == "unavailable");
    Ok((if json { format!("{status}\n") } else { print(&status) }, code))
}

/// The status as lines for people.
fn print(status: &Value) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let listed = |value: &Value| value.as_array().map(|list| list.iter().map(plain).collect::<Vec<_>>().join(", ")).unwrap_or_default();
    let get = |key: &str| plain(&status[key]);
    let mut why = listed(&status["reasons"]);
    let degraded = listed(&status["degraded"]);
    if !why.is_empty() && !degraded.is_empty() {
        why.push_str("; ");
    }
    why.push_str(&degraded);
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<12} {text}");
    };
    line("status", if why.is_empty() { get("status") } else { format!("{} ({why})", get("status")) });
    line(
        "pool",
        format!(
            "{} instance {} version {}, up {:.0} s",
            get("pool"),
            get("instance"),
            get("version"),
            status["uptime_s"].as_f64().unwrap_or(0.0)
        ),
    );
    let practice = if status["chain"] == "practice" { "PRACTICE chain" } else { "chain" };
    let age = status["template_age_s"].as_f64().map_or("none yet".to_owned(), |age_s| format!("{age_s:.1} s old"));
    line("chain", format!("{practice} {}, height {}, template {age}", get("chain"), get("height")));
    line("stratum", format!("{}; {} connections open", listed(&status["stratum"]), get("connections_open")));
    line("running on", format!("driver {}, kernel {}, ack {}", get("driver"), get("kernel"), get("ack")));
    line(
        "shares",
        format!("{} received, {} accepted, {} rejected", get("shares_received"), get("shares_accepted"), get("shares_rejected")),
    );
    let latency = &status["latency_us"];
    line(
        "latency",
        format!(
            "p50 {} us, p99 {} us, p99.9 {} us, max {} us",
            plain(&latency["p50"]),
            plain(&latency["p99"]),
            plain(&latency["p999"]),
            plain(&latency["max"])
        ),
    );
    let blocks = &status["blocks"];
    line(
        "blocks",
        format!(
            "{} found, {} accepted, {} superseded, {} rejected",
            plain(&blocks["found"]),
            plain(&blocks["accepted"]),
            plain(&blocks["superseded"]),
            plain(&blocks["rejected"])
        ),
    );
    let log = &status["log"];
    line(
        "log",
        format!(
            "{} segments sealed, {} shipped, {} rows unshipped, {} bytes",
            plain(&log["segments_sealed"]),
            plain(&log["segments_shipped"]),
            plain(&log["rows_unshipped"]),
            plain(&log["bytes"])
        ),
    );
    let error = plain(&status["clickhouse"]["last_error"]);
    line(
        "clickhouse",
        if error.is_empty() {
            plain(&status["clickhouse"]["state"])
        } else {
            format!("{}: {error}", plain(&status["clickhouse"]["state"]))
        },
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one request with `answer` and returns where.
    fn answering(answer: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            answer_once(stream, &answer);
        });
        address
    }

    /// Reads a whole request first: closing a socket with unread bytes would reset it under the client's hands.
    fn answer_once(mut stream: TcpStream, answer: &str) {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            request.push(byte[0]);
        }
        let _ = stream.write_all(answer.as_bytes());
    }

    fn with_body(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn a_degraded_server_exits_0_and_an_unavailable_one_1() {
        for (word, code) in [("ok", 0), ("degraded", 0), ("unavailable", 1)] {
            let body = format!(r#"{{"status":"{word}","reasons":[],"degraded":["clickhouse retrying"],"chain":"practice"}}"#);
            let (text, exit) = report(&answering(with_body(&body)), false).unwrap();
            assert_eq!(exit, code);
            assert!(text.starts_with(&format!("status       {word} (clickhouse retrying)\n")), "{text}");
            assert!(text.contains("PRACTICE chain"), "{text}");
            let (json, exit) = report(&answering(with_body(&body)), true).unwrap();
            assert_eq!((json, exit), (format!("{body}\n"), code));
        }
    }

    #[test]
    fn what_is_no_stats_endpoint_is_an_error_in_words() {
        for answer in [
            "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{}".to_owned(),
            with_body("<html>"),
            with_body("{}"),
            with_body("[1]"),
            String::new(),
        ] {
            let error = report(&answering(answer.clone()), false).unwrap_err();
            assert!(matches!(error, StatusError::Unexpected { .. }), "{answer:?}: {error}");
        }
    }

    #[test]
    fn nobody_listening_is_named_with_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = report(&address.to_string(), false).unwrap_err();
        assert!(matches!(error, StatusError::Connect { .. }), "{error}");
        assert!(error.to_string().contains(&address.to_string()));
        assert!(matches!(report("no address", false), Err(StatusError::Address { .. })));
    }

    #[test]
    fn an_unspecified_address_means_this_machine() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            answer_once(stream, &with_body("yes"));
        });
        assert_eq!(get(&format!("0.0.0.0:{port}"), "/live").unwrap(), HttpAnswer { code: 200, body: b"yes".to_vec() });
    }
}
