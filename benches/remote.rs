//! What the way to a server on this machine costs: products here, on the server by its kernels, and composed of Burn's operations there.
//! `cargo bench --profile dev --features remote --bench remote` shares its build with the tests, and prints a table.

use std::{
    hint::black_box,
    net::TcpListener,
    time::{Duration, Instant},
};

use burn::prelude::*;
use burn::remote::RemoteHost;
use burn::server::{RemoteServer, WebSocketTransport};
use burn::tensor::Distribution;
use burn_dot::DotConfig;

#[path = "../examples/common/traffic.rs"]
mod traffic;

use traffic::Traffic;

const ROUNDS: usize = 21;
const TURN: Duration = Duration::from_millis(50);

/// A way to a device: its name, the device, and the same behind a relay that counts.
struct Engine {
    name: &'static str,
    device: Device,
    counted: Option<(Device, Traffic)>,
}

impl Engine {
    fn remote(name: &'static str, kernels: bool) -> Self {
        let traffic = Traffic::default();
        let address = serve();
        let counted = traffic.count(address).unwrap();
        let connect = |address| {
            let device = Device::remote_options(&RemoteHost::websocket(&format!("ws://{address}"))).init().unwrap();
            if kernels {
                burn_dot::use_server_kernels(&device).unwrap();
            }
            device
        };
        Engine { name, device: connect(address), counted: Some((connect(counted), traffic)) }
    }
}

/// Starts a server on threads of its own.
fn serve() -> std::net::SocketAddr {
    let threads = Box::leak(Box::new(tokio::runtime::Runtime::new().unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = burn_dot::serve(RemoteServer::new([Device::flex()]), &Device::flex());
    threads.spawn(server.serve_async(WebSocketTransport::from_listener(listener)));
    address
}

/// A cosine of rows, with the sum of its output read, and that of both gradients.
fn call(device: &Device, [lhs, rhs]: &[Tensor<2>; 2], backward: bool) -> impl FnMut() -> f32 + use<> {
    let dot = DotConfig::new(1).with_normalize(true).init();
    let (lhs, rhs) = (lhs.clone().to_device(device), rhs.clone().to_device(device));
    let (leaf_lhs, leaf_rhs) = (lhs.clone().autodiff().require_grad(), rhs.clone().autodiff().require_grad());
    move || {
        if !backward {
            return dot.forward::<2, 2, 2, _>(lhs.clone(), rhs.clone()).sum().into_scalar();
        }
        let grads = dot.forward::<2, 2, 2, _>(leaf_lhs.clone(), leaf_rhs.clone()).sum().backward();
        let sum = |leaf: &Tensor<2>| leaf.grad(&grads).expect("a gradient").sum();
        (sum(&leaf_lhs) + sum(&leaf_rhs)).into_scalar()
    }
}

/// Seconds for a call, of those of one turn.
fn turn(call: &mut impl FnMut() -> f32) -> f64 {
    black_box(call());
    let (start, mut calls) = (Instant::now(), 0);
    while start.elapsed() < TURN {
        black_box(call());
        calls += 1;
    }
    start.elapsed().as_secs_f64() / f64::from(calls)
}

/// Bytes for a call, both ways.
fn bytes(engine: &Engine, inputs: &[Tensor<2>; 2], backward: bool) -> Option<u64> {
    const CALLS: u64 = 100;
    let (device, traffic) = engine.counted.as_ref()?;
    let mut call = call(device, inputs, backward);
    call();
    let before: u64 = traffic.bytes().iter().sum();
    (0..CALLS).for_each(|_| {
        black_box(call());
    });
    Some((traffic.bytes().iter().sum::<u64>() - before) / CALLS)
}

fn main() {
    let engines = [
        Engine { name: "here", device: Device::flex(), counted: None },
        Engine::remote("server, kernels", true),
        Engine::remote("server, composed", false),
    ];
    println!(
        "| cosine, sums read | {} |",
        engines.each_ref().map(|engine| format!("{}, ms | of here | kB", engine.name)).join(" | ")
    );
    println!("|---|{}", "---:|---:|---:|".repeat(engines.len()));
    for [rows, terms] in [[32, 8], [4096, 512]] {
        let random = || Tensor::<2>::random([rows, terms], Distribution::Normal(0.0, 1.0), &Device::flex());
        let inputs = [random(), random()];
        for (pass, backward) in [("forward", false), ("forward+backward", true)] {
            let mut calls = engines.each_ref().map(|engine| call(&engine.device, &inputs, backward));
            let answers = calls.each_mut().map(|call| call());
            assert!(answers.iter().all(|answer| (answer - answers[0]).abs() < 1e-3), "the sums differ: {answers:?}");
            let mut times = vec![Vec::new(); engines.len()];
            for _ in 0..ROUNDS {
                times.iter_mut().zip(&mut calls).for_each(|(times, call)| times.push(turn(call)));
            }
            let median = |times: &mut Vec<f64>| {
                times.sort_by(f64::total_cmp);
                times[ROUNDS / 2]
            };
            let times: Vec<f64> = times.iter_mut().map(median).collect();
            let cells = engines.iter().zip(&times).map(|(engine, time)| {
                let bytes = bytes(engine, &inputs, backward).map_or("–".into(), |bytes| format!("{:.1}", bytes as f64 / 1e3));
                format!("{:.3} | {:.1} | {bytes}", time * 1e3, time / times[0])
            });
            println!("| {rows}×{terms}, {pass} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }
}
