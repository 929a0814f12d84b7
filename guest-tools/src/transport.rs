//! The way to the broker: vsock or TCP. It carries bytes and is not trusted.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::str::FromStr;
use std::time::Duration;

use crate::system;

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A vsock CID and port; the host is CID 2.
    Vsock(u32, u32),
    /// host:port.
    Tcp(String),
}

/// Neither form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected vsock:CID:PORT or tcp:HOST:PORT")]
pub struct BadAddress;

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        match text.split_once(':') {
            Some(("vsock", rest)) => {
                let (cid, port) = rest.split_once(':').ok_or(BadAddress)?;
                Ok(Self::Vsock(cid.parse().map_err(|_| BadAddress)?, port.parse().map_err(|_| BadAddress)?))
            }
            Some(("tcp", rest)) if rest.contains(':') => Ok(Self::Tcp(rest.to_owned())),
            _ => Err(BadAddress),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(cid, port) => write!(f, "vsock:{cid}:{port}"),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A byte stream.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// How long one read or write on TCP may take.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Address {
    /// Connects.
    pub fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Vsock(cid, port) => Box::new(File::from(system::vsock_connect(*cid, *port)?)),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Box::new(stream)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print_alike() {
        for text in ["vsock:2:8080", "tcp:127.0.0.1:8080", "tcp:[::1]:80"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for bad in ["", "vsock:2", "vsock:x:1", "tcp:host", "unix:/x", "vsock:2:8080:1"] {
            assert_eq!(bad.parse::<Address>(), Err(BadAddress), "{bad:?}");
        }
    }
}
