//! The proxy's push: `GET /events` (`/events/{namespace}`), server-sent events (capability `events`).
//!
//! An event carries the new cursor of the index. The changes themselves are in the index.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, StatusCode};

use super::client::HttpRemote;
use super::reply::HttpReply;
use crate::remote::RemoteError;

/// Longest line of a stream, bytes.
const MAX_LINE: usize = 8 * 1024;
/// The idle timeout of a stream. Our proxy sends a comment more often.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

impl HttpRemote {
    /// Calls `on_open` when the stream is open, and `on_event` with the cursor of the index for each change after `last`.
    /// Returns the reason when the stream ends: `Unreachable` if it ended, broke or was idle.
    pub async fn listen(&self, last: Option<u64>, on_open: impl FnOnce(), on_event: impl FnMut(u64)) -> RemoteError {
        self.listen_within(IDLE_TIMEOUT, last, on_open, on_event).await
    }

    /// Opens the stream of events and waits for its first bytes. Our proxy sends some at once.
    pub async fn try_events(&self, wait: Duration) -> Result<(), RemoteError> {
        let opened = async {
            let mut answer = self.open_stream(None).await?;
            answer.next_endless(wait).await.map(drop)
        };
        let late = || RemoteError::Unreachable {
            url: self.link.url(&self.namespace_path("/events")),
            why: format!("no answer within {wait:?}"),
        };
        tokio::time::timeout(wait, opened).await.unwrap_or_else(|_| Err(late()))
    }

    /// Opens an endless stream: no permit, no limit on its length or duration.
    async fn open_stream(&self, last: Option<u64>) -> Result<HttpReply, RemoteError> {
        let url = self.link.url(&self.namespace_path("/events"));
        let mut request = self.link.request(Method::GET, &url).header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = match tokio::time::timeout(self.link.timeout, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(e)) => return Err(self.link.transport_error(&url, "", &e)),
            Err(_) => return Err(self.link.unreachable(&url, "no answer in time")),
        };
        let answer = HttpReply::new(Arc::clone(&self.link), &url, response, u64::MAX, None);
        if answer.status() == StatusCode::OK { Ok(answer) } else { Err(answer.refusal().await) }
    }

    async fn listen_within(
        &self,
        idle_timeout: Duration,
        last: Option<u64>,
        on_open: impl FnOnce(),
        mut on_event: impl FnMut(u64),
    ) -> RemoteError {
        let mut answer = match self.open_stream(last).await {
            Ok(answer) => answer,
            Err(e) => return e,
        };
        let media = answer.header(&CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let media = media.to_ascii_lowercase();
        if media != "text/event-stream" {
            return answer.protocol(&format!("{media:?} where a stream of events was asked for"));
        }
        on_open();
        let mut parser = EventParser::new(last);
        loop {
            match answer.next_endless(idle_timeout).await {
                Ok(piece) => {
                    if let Err(why) = parser.push(&piece, &mut on_event) {
                        return answer.protocol(why);
                    }
                }
                Err(e) => return e,
            }
        }
    }
}

/// Parses a stream of events (WHATWG HTML, 9.2.6), for the ids only. The pieces may be cut anywhere.
struct EventParser {
    line: Vec<u8>,
    /// The last byte was a CR, so that a following LF belongs to it.
    after_cr: bool,
    /// The last id. It also holds for later events without an id.
    id: Option<u64>,
    /// The current event has an id or data.
    pending: bool,
}

impl EventParser {
    fn new(last: Option<u64>) -> Self {
        Self { line: Vec::new(), after_cr: false, id: last, pending: false }
    }

    /// Fails if a line is too long.
    fn push(&mut self, piece: &[u8], on_event: &mut impl FnMut(u64)) -> Result<(), &'static str> {
        for &byte in piece {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => self.end_of_line(on_event),
                _ if self.line.len() >= MAX_LINE => return Err("an event has a line without end"),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_of_line(&mut self, on_event: &mut impl FnMut(u64)) {
        if self.line.is_empty() {
            if let (true, Some(id)) = (std::mem::take(&mut self.pending), self.id) {
                on_event(id);
            }
            return;
        }
        let colon = self.line.iter().position(|&b| b == b':').unwrap_or(self.line.len());
        let (field, value) = self.line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"id" => {
                // An id that is no cursor comes from another kind of proxy.
                if let Some(id) = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()) {
                    self.id = Some(id);
                    self.pending = true;
                }
            }
            b"data" => self.pending = true,
            _ => {}
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use secrecy::SecretString;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::options::HttpOptions;
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<u64> {
        let mut seen = Vec::new();
        let mut parser = EventParser::new(None);
        for piece in pieces {
            parser.push(piece, &mut |id| seen.push(id)).unwrap();
        }
        seen
    }

    #[test]
    fn events_do_not_depend_on_piece_boundaries() {
        let stream = b": hello\n\nid: 1\ndata: a\n\nevent: x\r\nid:2\r\n\r\nid: 3\rdata\r\rdata: only\n\nid: x\n\nretry: 5\n\nid: 9\n";
        let want = [1, 2, 3, 3];
        assert_eq!(events(&[stream]), want);
        for at in 0..stream.len() {
            let (a, b) = stream.split_at(at);
            assert_eq!(events(&[a, b]), want, "cut at {at}");
        }
        assert_eq!(events(&stream.chunks(1).collect::<Vec<_>>()), want);
    }

    #[test]
    fn parser_rejects_endless_line() {
        let mut parser = EventParser::new(None);
        assert!(parser.push(&[b'x'; MAX_LINE], &mut |_| ()).is_ok());
        assert!(parser.push(b"x", &mut |_| ()).is_err());
    }

    /// Answers one connection with `answer` and keeps it open until the client closes it. Returns the head of the request.
    async fn serve(answer: &'static str, hang_up: bool) -> (HttpRemote, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let request = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
            if !hang_up {
                let gone = socket.read(&mut [0]).await;
                assert!(matches!(gone, Ok(0) | Err(_)));
            }
            String::from_utf8(head).unwrap()
        });
        let options = HttpOptions {
            origin,
            token: SecretString::from("t0ken"),
            namespace: String::new(),
            device: String::new(),
            ca_pem: None,
            pin: None,
            allow_http: false,
            timeout: Duration::from_secs(20),
            max_file_size: 1 << 20,
            concurrency: 1,
        };
        (HttpRemote::new(options).unwrap(), request)
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: Text/Event-Stream; charset=utf-8\r\n";

    #[tokio::test]
    async fn listener_gets_events_until_stream_ends() {
        let answer = format!("{HEAD}connection: close\r\n\r\nid: 42\ndata: {{}}\n\nid: 43\n\n");
        let (remote, asked) = serve(answer.leak(), true).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let opened = || seen.lock().unwrap().push(0);
        let end = remote.listen(Some(41), opened, |id| seen.lock().unwrap().push(id)).await;
        assert!(matches!(&end, RemoteError::Unreachable { why, .. } if why.contains("ended")), "{end}");
        assert_eq!(*seen.lock().unwrap(), [0, 42, 43]);
        let asked = asked.await.unwrap().to_ascii_lowercase();
        assert!(asked.starts_with("get /events http/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nlast-event-id: 41\r\n") && asked.contains("bearer t0ken"), "{asked}");
    }

    #[tokio::test]
    async fn listener_ends_after_idle_timeout() {
        let answer = format!("{HEAD}content-length: 1000\r\n\r\nid: 1\n\n");
        let (remote, asked) = serve(answer.leak(), false).await;
        let mut seen = 0;
        let end = remote.listen_within(Duration::from_millis(50), None, || (), |_| seen += 1).await;
        assert!(matches!(&end, RemoteError::Unreachable { why, .. } if why.contains("no sign of life")), "{end}");
        assert_eq!(seen, 1);
        asked.await.unwrap();
    }

    #[tokio::test]
    async fn listener_rejects_other_content_types() {
        let (remote, _asked) =
            serve("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n", true).await;
        let end = remote.listen(None, || panic!("this is no stream of events"), |_| ()).await;
        assert!(matches!(&end, RemoteError::Protocol { why, .. } if why.contains("text/html")), "{end}");
        let (remote, _asked) = serve("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", true).await;
        let end = remote.listen(None, || panic!("this is no stream of events"), |_| ()).await;
        assert!(matches!(end, RemoteError::Refused { status: 404, .. }), "{end}");
    }
}
