//! Requests by hand over a TCP connection: what no HTTP library would send.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

const MAX_HEAD_BYTES: usize = 64 << 10;

/// The head of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// A header's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }
}

/// A connection to one node.
#[derive(Debug)]
pub struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    read: Vec<u8>,
    authority: String,
}

impl Connection {
    /// Connects to `http://host:port`.
    pub async fn open(url: &str) -> io::Result<Self> {
        let authority = url.trim_start_matches("http://").trim_end_matches('/');
        let (reader, writer) = TcpStream::connect(authority).await?.into_split();
        Ok(Self { reader, writer, read: Vec::new(), authority: authority.to_owned() })
    }

    /// Sends the head of a request with a `Host`, and these header lines.
    pub async fn request(&mut self, method: &str, path: &str, headers: &[&str]) -> io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.authority);
        for line in headers {
            head.push_str(line);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        self.write(head.as_bytes()).await
    }

    /// Sends bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Sends one piece of a chunked body; an empty one ends it.
    pub async fn write_chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
        self.write(bytes).await?;
        self.write(b"\r\n").await
    }

    /// Sends pieces of a chunked body until the peer answers or that many bytes are sent; how many were, and the answer.
    pub async fn send_until_answered(
        &mut self,
        piece: &[u8],
        most_bytes: usize,
        within: Duration,
    ) -> io::Result<(usize, Head)> {
        let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
        chunk.extend_from_slice(piece);
        chunk.extend_from_slice(b"\r\n");
        let mut sent = 0;
        while sent < most_bytes && !self.answered() {
            tokio::select! {
                biased;
                more = read_more(&mut self.reader, &mut self.read) => more?,
                written = self.writer.write_all(&chunk) => {
                    if written.is_err() {
                        break;
                    }
                    sent += piece.len();
                }
            }
        }
        Ok((sent, self.head(within).await?))
    }

    /// Reads the next head (`100 Continue` is one too); an error when the time is over or the peer closes.
    pub async fn head(&mut self, within: Duration) -> io::Result<Head> {
        timeout(within, self.read_head())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}")))?
    }

    /// Reads a body of that length, after its head.
    pub async fn body(&mut self, length: usize, within: Duration) -> io::Result<Vec<u8>> {
        let reading = async {
            while self.read.len() < length {
                read_more(&mut self.reader, &mut self.read).await?;
            }
            Ok(self.read.drain(..length).collect())
        };
        timeout(within, reading).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no body in time"))?
    }

    /// Reads until the peer closes: the bytes, or an error when the time is over.
    pub async fn until_closed(&mut self, within: Duration) -> io::Result<Vec<u8>> {
        let reading = async {
            loop {
                match read_more(&mut self.reader, &mut self.read).await {
                    Ok(()) => {}
                    // A reset is an end like any other.
                    Err(_) => return std::mem::take(&mut self.read),
                }
            }
        };
        timeout(within, reading).await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not close"))
    }

    async fn read_head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..end + 4).collect();
                return parse_head(&String::from_utf8_lossy(&head));
            }
            if self.read.len() > MAX_HEAD_BYTES {
                return Err(io::Error::other("a head without an end"));
            }
            read_more(&mut self.reader, &mut self.read).await?;
        }
    }

    fn answered(&self) -> bool {
        self.read.windows(4).any(|four| four == b"\r\n\r\n")
    }
}

async fn read_more(reader: &mut OwnedReadHalf, read: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; 8_192];
    match reader.read(&mut piece).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            read.extend_from_slice(&piece[..count]);
            Ok(())
        }
    }
}

fn parse_head(text: &str) -> io::Result<Head> {
    let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no status line in {text:?}")))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Head { status, headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_a_status_and_headers() {
        let head = parse_head("HTTP/1.1 404 Not Found\r\nContent-Length:  7\r\n\r\n").expect("it is one");
        assert_eq!(head.status, 404);
        assert_eq!(head.header("content-length"), Some("7"));
        assert!(parse_head("nonsense").is_err());
    }
}
