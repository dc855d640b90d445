//! As much of HTTP/1.1 as a local socket needs: one request, one answer, then the connection closes.

use std::io::{self, BufRead, BufReader, Read, Write};

/// Longest line and body taken; whoever sends more is refused.
const LINE_BYTES_MAX: u64 = 8 << 10;
const BODY_BYTES_MAX: u64 = 1 << 20;
const HEADERS_MAX: usize = 64;

/// A request's method and path, or an answer's status; and the body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) first_line: String,
    pub(super) body: String,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LINE_BYTES_MAX).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(bad("a line of the message has no end"));
    }
    Ok(line.trim_end().to_owned())
}

/// Reads a message.
pub(super) fn read(stream: impl Read) -> io::Result<Message> {
    let mut reader = BufReader::new(stream);
    let first_line = line(&mut reader)?;
    let mut length = 0u64;
    for _ in 0..HEADERS_MAX {
        let header = line(&mut reader)?;
        if header.is_empty() {
            if length > BODY_BYTES_MAX {
                return Err(bad("the message is too long"));
            }
            let mut body = String::new();
            reader.take(length).read_to_string(&mut body)?;
            if body.len() as u64 != length {
                return Err(bad("the message was cut off"));
            }
            return Ok(Message { first_line, body });
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(|_| bad("the message's length is no number"))?;
        }
    }
    Err(bad("the message has too many headers"))
}

/// Writes a message.
pub(super) fn write(mut stream: impl Write, first_line: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "{first_line}\r\nHost: aegisfs\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_and_nonsense_is_refused() {
        let mut bytes = Vec::new();
        write(&mut bytes, "POST /v1/sync HTTP/1.1", "{\"a\":1}").unwrap();
        let message = read(&bytes[..]).unwrap();
        assert_eq!(
            (message.first_line.as_str(), message.body.as_str()),
            ("POST /v1/sync HTTP/1.1", "{\"a\":1}")
        );
        for nonsense in [&b""[..], b"GET /", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", &[b'a'; 20_000]]
        {
            assert!(read(nonsense).is_err());
        }
        assert!(read(&bytes[..bytes.len() - 1]).is_err());
        assert!(read(&b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"[..]).is_err());
    }
}
