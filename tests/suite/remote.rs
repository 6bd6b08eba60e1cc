//! Remote devices: a server in the test's own process, of the device that `BURN_SERVER` names (`flex` by default).
//!
//! `BURN_DEVICE=remote` runs the whole suite on one, by the server's kernels, or, with `BURN_DOT_PATH=composed`, by Burn's operations. What
//! is about the way there is tested here.

use std::{
    net::TcpListener,
    sync::{LazyLock, OnceLock},
};

use burn::prelude::*;
use burn::remote::RemoteHost;
use burn::server::{
    RemoteServer, TokenAuthorizer, WebSocketTransport,
    telemetry::{OpClass, TelemetryEvent, TelemetryProbe, TelemetrySubscription},
};
use burn_dot::{DotConfig, ServerError, use_server_kernels};

use crate::{device, run};

/// What servers run on, until the tests end.
static THREADS: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

/// Starts a server.
fn start(server: RemoteServer) -> RemoteHost {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = RemoteHost::websocket(&format!("ws://{}", listener.local_addr().unwrap()));
    THREADS.spawn(server.serve_async(WebSocketTransport::from_listener(listener)));
    host
}

fn served() -> Device {
    device::named(&device::variable("BURN_SERVER"))
}

fn connect(host: &RemoteHost) -> Device {
    Device::remote_options(host).init().unwrap()
}

/// The device of the suite.
pub fn shared() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        let device = connect(&start(burn_dot::serve(RemoteServer::new([served()]), &served())));
        if !run::is_composed() {
            use_server_kernels(&device).unwrap();
        }
        device
    });
    device.clone()
}

/// The kinds of the operations that a session was sent since the last time, without those that make or free tensors.
fn computed(events: &mut TelemetrySubscription) -> Vec<OpClass> {
    let mut drained = Vec::new();
    events.drain_into(&mut drained);
    let kinds = drained.iter().filter_map(|event| match event.as_ref() {
        TelemetryEvent::Op { kind, .. } => Some(*kind),
        _ => None,
    });
    kinds.filter(|kind| *kind != OpClass::Init).collect()
}

/// The output and both gradients of a cosine of rows.
fn cosine(device: &Device) -> [TensorData; 3] {
    let device = device.clone().autodiff();
    let rows = |phase| run::tensor::<2>(&run::wave(&[6, 40], phase), burn::tensor::DType::F32, &device).require_grad();
    let (lhs, rhs) = (rows(0.1), rows(0.5));
    let out: Tensor<2> = DotConfig::new(1).with_normalize(true).init().forward(lhs.clone(), rhs.clone());
    let grads = out.clone().sum().backward();
    [out.into_data(), lhs.grad(&grads).unwrap().into_data(), rhs.grad(&grads).unwrap().into_data()]
}

#[test]
fn a_product_is_one_message_and_its_gradients_are_another() {
    let (probe, mut events) = TelemetryProbe::channel(1 << 16);
    let server = RemoteServer::new([served()]).with_telemetry(probe);
    let host = start(burn_dot::serve(server, &served()));
    let custom = |kinds: &[OpClass]| kinds.iter().filter(|kind| **kind == OpClass::Custom).count();

    let composed = connect(&host);
    cosine(&composed);
    let kinds = computed(&mut events);
    assert_eq!(custom(&kinds), 0, "nobody said that the server has the operations: {kinds:?}");
    assert!(kinds.len() > 20, "a composition is many operations: {kinds:?}");

    use_server_kernels(&composed).unwrap();
    computed(&mut events);
    let answers = cosine(&composed);
    let kinds = computed(&mut events);
    // Forward and backward.
    assert_eq!(custom(&kinds), 2, "{kinds:?}");
    assert!(kinds.len() < 10, "{kinds:?}");
    assert_eq!(answers, cosine(&served()), "the server computes as the device does where it is");
}

#[test]
fn a_server_without_the_operations_is_told_from_one_with_them() {
    let device = connect(&start(RemoteServer::new([served()])));
    let error = use_server_kernels(&device).unwrap_err();
    assert!(matches!(error, ServerError::NoKernels { .. }), "{error:?}");
    assert!(error.to_string().contains("does not have the operations of this version of burn-dot"), "{error}");
}

#[test]
fn products_are_composed_on_a_server_without_the_operations() {
    let device = connect(&start(RemoteServer::new([served()])));
    let given = cosine(&device);
    for (given, expected) in given.iter().zip(cosine(&served())) {
        given.assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-6));
    }
}

#[test]
fn a_device_that_is_not_remote_has_no_server() {
    let error = use_server_kernels(&served()).unwrap_err();
    assert!(matches!(error, ServerError::NotRemote { .. }), "{error:?}");
    assert!(error.to_string().contains("is not a remote device"), "{error}");
}

#[test]
fn asking_twice_and_with_autodiff_is_asking_once() {
    let device = connect(&start(burn_dot::serve(RemoteServer::new([served()]), &served())));
    assert_eq!(use_server_kernels(&device.clone().autodiff()), Ok(()));
    assert_eq!(use_server_kernels(&device), Ok(()));
    cosine(&device);
}

#[test]
fn a_token_is_asked_of_clients() {
    let server = RemoteServer::new([served()]).with_authorizer(TokenAuthorizer::new("right").unwrap());
    let host = start(burn_dot::serve(server, &served()));
    for host in [host.clone(), host.clone().with_credential("wrong")] {
        let refused = Device::remote_options(&host).init().unwrap_err();
        assert!(refused.to_string().contains("rejected the credential"), "{refused}");
    }
    use_server_kernels(&connect(&host.with_credential("right"))).unwrap();
}

#[test]
fn one_input_as_both_and_unused_outputs_leave_the_session_alive() {
    let device = connect(&start(burn_dot::serve(RemoteServer::new([served()]), &served())));
    use_server_kernels(&device).unwrap();
    let device = device.autodiff();
    let dot = DotConfig::new(1).with_normalize(true).init();
    let x = Tensor::<2>::ones([3, 5], &device).require_grad();
    let out: Tensor<2> = dot.forward(x.clone(), x.clone());
    drop::<Tensor<2>>(dot.forward(x.clone(), x.clone())); // Nobody reads it, nor what it saved.
    let grads = out.clone().sum().backward();
    let largest: f32 = x.grad(&grads).unwrap().abs().max().into_scalar();
    assert!(largest < 1e-6, "a cosine of a vector with itself does not change: {largest}");
    out.into_data()
        .assert_approx_eq::<f32>(&TensorData::from([[1.0f32], [1.0], [1.0]]), burn::tensor::Tolerance::absolute(1e-6));
    device.sync().unwrap();
}
