//! Other machines to train on: their servers, from arguments to devices.

use std::{
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Result, ensure};
use burn::prelude::*;

use super::{catch, traffic::Traffic};

/// The variable that holds what a server asks its clients for. Not an argument: those can be read in the list of processes.
pub const TOKEN: &str = "BURN_DOT_TOKEN";

#[derive(clap::Args)]
pub struct RemoteArgs {
    /// Servers to train on, as ws://HOST:PORT,…: each computes its part of every batch. The example `serve` is one. Needs the cargo feature remote
    #[arg(long, value_name = "URL", value_delimiter = ',', conflicts_with_all = ["device", "servers"])]
    remote: Vec<String>,
    /// Starts so many servers on 127.0.0.1 and trains on them, for a try; counts their bytes. Needs the cargo feature remote
    #[arg(long, value_name = "N", conflicts_with = "device", value_parser = clap::value_parser!(u32).range(1..=16))]
    servers: Option<u32>,
    /// Sends Burn's operations one by one, as servers without those of burn-dot need it
    #[arg(long)]
    composed: bool,
}

/// Connected servers.
pub struct Servers {
    urls: Vec<String>,
    pub devices: Vec<Device>,
    /// Of servers that were started here.
    pub traffic: Option<Traffic>,
}

impl RemoteArgs {
    /// Connects to the servers that were asked for, if any were.
    pub fn connect(&self) -> Result<Option<Servers>> {
        let (urls, traffic) = match self.servers {
            Some(count) => {
                let (urls, traffic) = start(count)?;
                (urls, Some(traffic))
            }
            None if self.remote.is_empty() => {
                ensure!(!self.composed, "--composed is for servers: add --remote or --servers");
                return Ok(None);
            }
            None => (self.remote.clone(), None),
        };
        for (i, url) in urls.iter().enumerate() {
            ensure!(!urls[..i].contains(url), "server {url} is named twice");
        }
        let devices = urls.iter().map(|url| connect(url, self.composed)).collect::<Result<_>>()?;
        Ok(Some(Servers { urls, devices, traffic }))
    }
}

impl Servers {
    /// Runs what needs the servers. Burn says in many ways that one is gone, in errors and in panics; this says which one.
    pub fn watch<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = catch(run);
        if let Ok(Ok(value)) = result {
            return Ok(value);
        }
        let answers = |device: &Device| matches!(catch(|| device.sync()), Ok(Ok(())));
        let lost = self.urls.iter().zip(&self.devices).filter(|(_, device)| !answers(device));
        let lost: Vec<&str> = lost.map(|(url, _)| url.as_str()).collect();
        // A server that is gone takes along the sessions of those that wait for its tensors.
        let gone: Vec<&str> = lost.iter().copied().filter(|url| !listens(url)).collect();
        ensure!(gone.is_empty(), "server {} is gone; --resume goes on from the last checkpoint", gone.join(" and "));
        ensure!(
            lost.is_empty(),
            "server {} ended the session, its log says why; --resume goes on from the last checkpoint",
            lost.join(" and ")
        );
        result.unwrap_or_else(|reason| panic!("{reason}"))
    }
}

/// Whether anything accepts connections at an address.
fn listens(url: &str) -> bool {
    let host = url.trim_start_matches("ws://").split('/').next().unwrap_or_default();
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    address
        .to_socket_addrs()
        .is_ok_and(|mut found| found.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()))
}

#[cfg(feature = "remote")]
fn connect(url: &str, composed: bool) -> Result<Device> {
    use anyhow::{Context, anyhow};
    use burn::remote::RemoteHost;

    ensure!(url.starts_with("ws://"), "server {url:?}: its address begins with ws://, as in ws://127.0.0.1:3000");
    println!("server {url}: connecting, for at most 16 s");
    let host = RemoteHost::websocket(url);
    let host = match std::env::var(TOKEN) {
        Ok(token) if !token.is_empty() => host.with_credential(token),
        _ => host,
    };
    let device = Device::remote_options(&host).init();
    let device = device.map_err(|error| anyhow!("{error}")).with_context(|| format!("server {url}"))?;
    if !composed {
        let known = burn_dot::use_server_kernels(&device);
        known.map_err(|_| {
            anyhow!("server {url} does not have the operations of burn-dot: start the example `serve`, or add --composed")
        })?;
    }
    Ok(device)
}

/// Starts servers on threads of this process, which end with it, each behind a counter of its bytes.
#[cfg(feature = "remote")]
fn start(count: u32) -> Result<(Vec<String>, Traffic)> {
    use std::net::TcpListener;

    use burn::server::{RemoteServer, WebSocketTransport};

    let threads = Box::leak(Box::new(tokio::runtime::Runtime::new()?));
    let (mut urls, traffic) = (Vec::new(), Traffic::default());
    for _ in 0..count {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = traffic.count(listener.local_addr()?)?;
        let device = super::open("flex".parse().map_err(anyhow::Error::msg)?)?;
        let server = burn_dot::serve(RemoteServer::new([device.clone()]), &device);
        threads.spawn(server.serve_async(WebSocketTransport::from_listener(listener)));
        urls.push(format!("ws://{address}"));
    }
    Ok((urls, traffic))
}

#[cfg(not(feature = "remote"))]
fn connect(_: &str, _: bool) -> Result<Device> {
    anyhow::bail!("servers are not in this build; add --features remote to the cargo command")
}

#[cfg(not(feature = "remote"))]
fn start(_: u32) -> Result<(Vec<String>, Traffic)> {
    anyhow::bail!("servers are not in this build; add --features remote to the cargo command")
}
