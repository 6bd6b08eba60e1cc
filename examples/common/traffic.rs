//! How many bytes went to servers and came from them: a relay that counts.

use std::{
    fmt, io,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

#[derive(Clone, Default)]
pub struct Traffic(Arc<Counts>);

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Where to connect to in place of a server, so that its bytes are counted.
    pub fn count(&self, server: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let counts = self.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(server) = TcpStream::connect(server) {
                    let _ = counts.forward(client, server);
                }
            }
        });
        Ok(address)
    }

    fn forward(&self, client: TcpStream, server: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, from_server) = (client.try_clone()?, server.try_clone()?);
        let (sent, received) = (self.clone(), self.clone());
        thread::spawn(move || copy(from_client, server, &sent.0.sent));
        thread::spawn(move || copy(from_server, client, &received.0.received));
        Ok(())
    }

    pub fn bytes(&self) -> [u64; 2] {
        [self.0.sent.load(Relaxed), self.0.received.load(Relaxed)]
    }
}

/// Copies until either end closes, then closes both.
fn copy(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer)
        && to.write_all(&buffer[..read]).is_ok()
    {
        count.fetch_add(read as u64, Relaxed);
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [sent, received] = self.bytes().map(|bytes| bytes as f64 / 1e6);
        write!(f, "{sent:.1} MB to servers, {received:.1} MB from them")
    }
}
