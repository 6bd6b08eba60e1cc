//! Lets models that train on other machines compute on this one: a server of Burn's remote devices, with the kernels of burn-dot.
//!
//! ```sh
//! RUST_LOG=warn cargo run --features remote --example serve    # Burn's default is a line for each tensor from another server
//! cargo run --features remote --example dense_dot -- --remote ws://127.0.0.1:3000
//! ```
//!
//! It listens on this machine only. For any other address it asks for a token, in BURN_DOT_TOKEN, here and where `dense_dot` runs:
//!
//! ```sh
//! BURN_DOT_TOKEN=… cargo run --features remote --example serve -- --listen 0.0.0.0:3000
//! ```
//!
//! The token keeps strangers out, not listeners: over WebSocket it travels as it is, and so do all tensors. Between servers, tensors are
//! moved without it. Across a network that is not trusted use Burn's Iroh transport, which encrypts, or a tunnel.

use std::{
    env,
    net::{SocketAddr, TcpListener},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use burn::server::{RemoteServer, TokenAuthorizer, WebSocketTransport};
use clap::Parser;

mod common;

use common::{Place, forget_panics, open, remote::TOKEN, report};

/// Let models that train on other machines compute on this one.
#[derive(Parser)]
struct Args {
    /// What computes: flex, ndarray, wgpu, cuda, or a numbered GPU (cuda:1). All but flex need the cargo feature of that name
    #[arg(long, default_value = "flex")]
    device: Place,
    /// Address and port to listen on. Any but this machine's own needs a token in BURN_DOT_TOKEN
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
}

fn main() -> ExitCode {
    let args = Args::parse();
    report(|| {
        let result = run(&args);
        // What panicked was a session. It ended alone, and Burn has logged why.
        forget_panics();
        result
    })
}

fn run(args: &Args) -> Result<()> {
    let token = env::var(TOKEN).ok().filter(|token| !token.is_empty());
    if token.is_none() && !args.listen.ip().is_loopback() {
        bail!(
            "--listen {} lets other machines in: set {TOKEN}, here and for the clients, to a secret of your choice",
            args.listen
        );
    }
    let device = open(args.device)?;
    let server = burn_dot::serve(RemoteServer::new([device.clone()]), &device);
    let server = match &token {
        Some(token) => server.with_authorizer(TokenAuthorizer::new(token)?),
        None => server,
    };
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    println!(
        "serving {device:?} at ws://{}, unencrypted, {}",
        listener.local_addr()?,
        match token {
            Some(_) => "to clients with the token",
            None => "to every program on this machine",
        }
    );
    Ok(server.serve(WebSocketTransport::from_listener(listener))?)
}
