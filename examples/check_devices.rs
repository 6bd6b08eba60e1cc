//! Runs Burn's layers and operations on the devices of this build, and prints where outputs or gradients differ: layer × device and dtype.
//!
//! ```sh
//! cargo run --example check_devices                                       # flex alone, in f64 and f32
//! cargo run --features ndarray,wgpu,fusion --example check_devices        # every device of the build
//! cargo run --features wgpu --example check_devices -- --device wgpu --only sqrt --reports
//! ```
//!
//! The first column is flex in f64, checked by finite differences. Each of the others is compared with it at the same numbers, by
//! `GradCheck::compare`. `ok`: equal within rounding. `precision`: digits are lost. `wrong`, `NaN`, `panic`: as they say. `?`: finite
//! differences do not tell. `–`: the device lacks the dtype or the operation, or the layer holds f32 numbers of its own and is compared in
//! f32 only.
//!
//! The exit code is 0 where every fault that is found is known (of Burn 0.22.1, see `known`), 1 where another is found or a device
//! cannot be had, 2 for arguments that mean nothing.

// Of what the examples have in common this one needs the devices alone.
mod common;

use std::process::ExitCode;

use anyhow::{Result, bail};
use burn::linalg::{cosine_similarity, l2_norm};
use burn::module::Param;
use burn::nn::{attention::*, conv::*, gru::*, loss::*, pool::*, transformer::*, *};
use burn::prelude::*;
use burn::tensor::{DType, activation::*};
use burn_dot::{Dot, DotConfig};
use burn_gradcheck::{Agreement, Compare, DeviceReport, GradCheck};
use clap::Parser;
use common::{Place, catch, forget_panics, open, report};

/// Where Burn's layers and operations differ between devices: forward and gradients, in f64 and f32.
#[derive(Parser)]
#[command(after_help = "Exit code: 0 where every fault that is found is a known one of Burn, 1 where another is found.")]
struct Arguments {
    /// A device beside flex: ndarray, wgpu, wgpu:1, cuda; may be given several times. Default: every one of this build
    #[arg(long)]
    device: Vec<Place>,
    /// Only the rows whose names contain this
    #[arg(long, default_value = "")]
    only: String,
    /// Print what is found of each row that is not ok
    #[arg(long)]
    reports: bool,
}

type Run = Box<dyn Fn(&Compare) -> DeviceReport>;

/// The rows in order: a name, and what is compared.
#[derive(Default)]
struct Rows(Vec<(&'static str, Run)>);

impl Rows {
    fn one<const D: usize, const O: usize>(
        &mut self,
        name: &'static str,
        x: Tensor<D>,
        f: impl Fn(Tensor<D>) -> Tensor<O> + 'static,
    ) {
        self.0.push((name, Box::new(move |compare| compare.check(&f, x.clone()))));
    }

    fn two<const D: usize, const E: usize, const O: usize>(
        &mut self,
        name: &'static str,
        inputs: (Tensor<D>, Tensor<E>),
        f: impl Fn(Tensor<D>, Tensor<E>) -> Tensor<O> + 'static,
    ) {
        self.0.push((name, Box::new(move |compare| compare.check(|(x, y)| f(x, y), inputs.clone()))));
    }

    fn module<M: Module + Clone + 'static, const D: usize, const O: usize>(
        &mut self,
        name: &'static str,
        module: M,
        x: Tensor<D>,
        f: impl Fn(&M, Tensor<D>) -> Tensor<O> + 'static,
    ) {
        self.0.push((name, Box::new(move |compare| compare.check_module_with(&module, x.clone(), &f))));
    }
}

/// Distinct numbers of both signs.
fn wave<const D: usize>(shape: [usize; D], phase: f64) -> Tensor<D> {
    let numbers = (1..=shape.iter().product()).map(|i: usize| 1.3 * (phase + i as f64 * 1.618).sin() + 0.2);
    Tensor::from_data(TensorData::new(numbers.collect(), shape), (&Device::flex(), DType::F32))
}

fn x<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    wave(shape, 0.35)
}

fn y<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    wave(shape, 0.85)
}

fn positive<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    x(shape).abs() + 0.5
}

fn layers(rows: &mut Rows) {
    let d = Device::flex().autodiff();
    d.seed(7);
    rows.module("Linear", LinearConfig::new(3, 4).init(&d), x([2, 3]), |m, x| m.forward(x));
    rows.module("Conv1d", Conv1dConfig::new(2, 3, 3).init(&d), x([2, 2, 6]), |m, x| m.forward(x));
    rows.module("Conv2d", Conv2dConfig::new([2, 3], [2, 3]).init(&d), x([1, 2, 4, 5]), |m, x| m.forward(x));
    rows.module("ConvTranspose2d", ConvTranspose2dConfig::new([2, 3], [2, 3]).init(&d), x([1, 2, 3, 4]), |m, x| m.forward(x));
    rows.one("MaxPool2d", x([1, 2, 4, 5]), |x| MaxPool2dConfig::new([2, 2]).init().forward(x));
    rows.one("AvgPool2d", x([1, 2, 4, 5]), |x| AvgPool2dConfig::new([2, 2]).init().forward(x));
    rows.module("BatchNorm", BatchNormConfig::new(3).init(&d), x([4, 3, 2]), |m, x| m.forward(x));
    rows.module("GroupNorm", GroupNormConfig::new(2, 4).init(&d), x([2, 4, 3]), |m, x| m.forward(x));
    rows.module("LayerNorm", LayerNormConfig::new(5).init(&d), x([2, 5]), |m, x| m.forward(x));
    rows.module("RmsNorm", RmsNormConfig::new(5).init(&d), x([2, 5]), |m, x| m.forward(x));
    // Who hands over f64 wants f64.
    rows.one("RmsNorm of f64", x([2, 5]).cast(DType::F64), |x| {
        let gamma = Param::from_tensor(Tensor::ones([5], (&x.device(), x.dtype())));
        RmsNorm { gamma, epsilon: 1e-5 }.forward(x)
    });
    rows.module("SwiGlu", SwiGluConfig::new(3, 4).init(&d), x([2, 3]), |m, x| m.forward(x));
    rows.module("Gru", GruConfig::new(3, 4, true).init(&d), x([2, 3, 3]), |m: &Gru, x| m.forward(x, None));
    rows.module("Lstm", LstmConfig::new(3, 4, true).init(&d), x([2, 3, 3]), |m: &Lstm, x| m.forward(x, None).0);
    rows.module("MultiHeadAttention", MultiHeadAttentionConfig::new(4, 2).with_dropout(0.0).init(&d), x([2, 3, 4]), |m, x| {
        m.forward(MhaInput::self_attn(x)).context
    });
    let encoder = TransformerEncoderConfig::new(4, 6, 2, 1).with_dropout(0.0).init(&d);
    rows.module("TransformerEncoder", encoder, x([2, 3, 4]), |m: &TransformerEncoder, x| {
        m.forward(TransformerEncoderInput::new(x))
    });
    let embedding = EmbeddingConfig::new(4, 3).init(&d);
    let tokens = Tensor::<2, Int>::from_data([[0, 2], [1, 2]], &Device::flex());
    rows.0.push((
        "Embedding",
        Box::new(move |compare| compare.check_module_with(&embedding, tokens.clone(), |m, tokens| m.forward(tokens))),
    ));
    let classes = Tensor::<1, Int>::from_data([1, 0, 3], &Device::flex());
    rows.0.push((
        "CrossEntropyLoss",
        Box::new(move |compare| {
            let loss =
                |(x, classes): (Tensor<2>, Tensor<1, Int>)| CrossEntropyLossConfig::new().init(&x.device()).forward(x, classes);
            compare.check(loss, (x([3, 4]), classes.clone()))
        }),
    ));
    rows.two("MseLoss", (x([3, 4]), y([3, 4])), |x, y| MseLoss::new().forward(x, y, Reduction::Mean));
}

fn operations(rows: &mut Rows) {
    let m = [3, 4];
    rows.one("softmax", x(m), |x| softmax(x, 1));
    rows.one("log_softmax", x(m), |x| log_softmax(x, 1));
    rows.one("relu", x(m), relu);
    rows.one("gelu", x(m), gelu);
    rows.one("sigmoid", x(m), sigmoid);
    rows.one("silu", x(m), silu);
    rows.one("softplus", x(m), |x| softplus(x, 1.5));
    // Who hands over f64 wants f64.
    rows.one("hard_sigmoid of f64", x(m).cast(DType::F64), |x| hard_sigmoid(x, 0.2, 0.5));
    rows.one("exp", x(m), |x| x.exp());
    rows.one("log", positive(m), |x| x.log());
    rows.one("log1p of small numbers", x(m) * 1e-6, |x| x.log1p());
    rows.one("tanh", x(m), |x| x.tanh());
    rows.one("sin", x(m), |x| x.sin());
    rows.two("powf", (positive(m), y(m)), |x, y| x.powf(y));
    rows.one("sqrt", positive(m), |x| x.sqrt());
    rows.one("sqrt at zero", Tensor::zeros([1, 2], &Device::flex()), |x: Tensor<2>| x.clone().square().sum_dim(1).sqrt() * x);
    rows.one("l2_norm", x(m), |x| l2_norm(x, 1));
    rows.two("cosine_similarity", (x(m), y(m)), |x, y| cosine_similarity(x, y, 1, None));
    let zero = Tensor::<2>::zeros([1, 2], &Device::flex());
    rows.two("cosine_similarity at a zero vector", (zero, y([1, 2])), |x, y| cosine_similarity(x, y, 1, Some(1e-3)));
    rows.two("matmul", (x([2, 3, 4]), y([1, 4, 5])), |x, y| x.matmul(y));
    rows.one("sum of permuted axes", x([2, 2, 2, 1]), |x: Tensor<4>| x.permute([0, 3, 2, 1]).sum_dim(0));
    rows.one("expand, then permute", x([1, 2, 2, 2]), |x: Tensor<4>| {
        let x = x.expand([3, 2, 2, 2]).permute([0, 3, 2, 1]);
        x.clone() * x
    });
    rows.one("sum of an expanded tensor", x([3, 1]), |x: Tensor<2>| x.expand([3, 5]).sum_dim(1));
    rows.one("var", x(m), |x| x.var(1));
    rows.one("cumsum", x(m), |x| x.cumsum(1));
    rows.one("sort", x(m), |x| x.sort(1));
    rows.one("max_dim", x(m), |x| x.max_dim(1));
    rows.one("slice and flip", x(m), |x: Tensor<2>| {
        let x = x.slice([1..3, 0..3]).flip([1]);
        x.clone() * x
    });
    rows.0.push((
        "gather",
        Box::new(|compare| {
            let index = Tensor::<2, Int>::from_data([[0, 3], [1, 1], [2, 0]], &Device::flex());
            compare.check(|(x, index): (Tensor<2>, Tensor<2, Int>)| x.gather(1, index).square(), (x([3, 4]), index))
        }),
    ));
}

/// What Burn's backends are known to have trouble with.
fn hard(rows: &mut Rows) {
    const LONG: usize = 1 << 20;
    let tenth = || Tensor::<1>::from_data([0.1], &Device::flex());
    rows.one("matmul of 2²⁰ terms", tenth(), |x: Tensor<1>| {
        let weights = Tensor::<2>::full([LONG, 3], 0.1, (&x.device(), x.dtype()));
        x.reshape([1, 1]).expand([1, LONG]).matmul(weights)
    });
    rows.one("sum of 2²⁰ terms", tenth(), |x: Tensor<1>| {
        let ones = Tensor::<2>::ones([1, LONG], (&x.device(), x.dtype()));
        (ones * x.unsqueeze()).sum_dim(1)
    });
    rows.one("sum of 2²⁰ repeated terms", tenth(), |x: Tensor<1>| x.reshape([1, 1]).expand([1, LONG]).sum_dim(1));
    rows.0.push((
        "an operation on an empty batch",
        Box::new(|compare| {
            let twice = |x: Tensor<2>| {
                let empty = TensorData::new(Vec::<f32>::new(), [0, 3]);
                let empty = Tensor::<2>::from_data(empty, (&x.device(), x.dtype()));
                (x * 2.0, empty * 2.0)
            };
            compare.check(twice, x([2, 3]))
        }),
    ));
    rows.one("an operation beside an empty one", x([1, 3]), |x: Tensor<2>| {
        let out = x.clone() * 7.25;
        let _empty = Tensor::<2>::ones([0, 3], (&x.device(), x.dtype())) * 7.25;
        out
    });
}

fn dots(rows: &mut Rows) {
    let dot = |config: DotConfig| -> Dot { config.init() };
    let rowwise = |dot: Dot| move |x: Tensor<2>, y: Tensor<2>| -> Tensor<2> { dot.forward(x, y) };
    rows.two("Dot", (x([3, 4]), y([3, 4])), rowwise(dot(DotConfig::new(1))));
    rows.two("Dot, cosine", (x([3, 4]), y([3, 4])), rowwise(dot(DotConfig::new(1).with_normalize(true))));
    let matrices = dot(DotConfig::new((2, 1)).with_normalize(true));
    rows.two("Dot, cosine of matrices", (x([2, 3, 5]), y([2, 5, 4])), move |x, y| -> Tensor<3> { matrices.forward(x, y) });
    let zero = Tensor::<2>::zeros([1, 2], &Device::flex());
    let floored = dot(DotConfig::new(1).with_normalize(true).with_epsilon(1e-3));
    rows.two("Dot, cosine at a zero vector", (zero, y([1, 2])), rowwise(floored));
}

/// Rows that need exp, log, sin or a power of f64.
const MATH: [&str; 21] = [
    "GroupNorm",
    "LayerNorm",
    "MultiHeadAttention",
    "TransformerEncoder",
    "CrossEntropyLoss",
    "softmax",
    "log_softmax",
    "gelu",
    "sigmoid",
    "silu",
    "SwiGlu",
    "softplus",
    "exp",
    "log",
    "log1p of small numbers",
    "tanh",
    "sin",
    "powf",
    "sqrt",
    "l2_norm",
    "cosine_similarity",
];

/// How bad a row is at most on a device in a dtype, and why, where that is known of Burn 0.22.1.
fn known(row: &str, device: &str, dtype: DType) -> Option<(Agreement, &'static str)> {
    use Agreement::*;
    let is_flex = device == "Flex";
    let is_ndarray = device == "NdArray";
    let is_cubecl = !is_flex && !is_ndarray;
    let is_wgpu = device == "Wgpu";
    let is_f64 = dtype == DType::F64;
    Some(match row {
        "hard_sigmoid of f64" if is_f64 => (Precision, "Burn casts to f32 inside"),
        "sigmoid" | "silu" | "SwiGlu" if is_f64 && !is_flex => (Precision, "Burn takes the sigmoid in f32"),
        "RmsNorm of f64" if is_f64 => (Precision, "Burn takes the norm in f32, whatever the dtype"),
        row if is_wgpu && is_f64 && MATH.contains(&row) => (NotFinite, "shaders have no exp, log, sin or power of f64"),
        "gelu" | "TransformerEncoder" if !is_flex => (Precision, "the gradient of gelu is that of its approximation by tanh"),
        "sqrt at zero" | "cosine_similarity at a zero vector" if !is_cubecl => {
            (NotFinite, "the root's infinite slope meets a zero")
        }
        "sum of permuted axes" | "expand, then permute" if is_cubecl => {
            (Wrong, "cubek-reduce counts axes that agree by chance")
        }
        "log1p of small numbers" if is_cubecl => (Wrong, "it is log(1 + x)"),
        "matmul of 2²⁰ terms" | "sum of 2²⁰ terms" | "sum of 2²⁰ repeated terms" if is_wgpu => {
            (Wrong, "Mesa's llvmpipe ends a loop after 65,535 rounds")
        }
        "matmul of 2²⁰ terms" | "sum of 2²⁰ terms" | "sum of 2²⁰ repeated terms" if is_ndarray || is_flex && !is_f64 => {
            (Wrong, "terms are added one by one")
        }
        "an operation on an empty batch" if is_cubecl => (Panic, "a size of zero, minus 1, where overflow is checked"),
        "an operation beside an empty one" if is_cubecl => (Panic, "fused with a kernel over nothing, or the empty one panics"),
        _ => return None,
    })
}

fn devices(asked: &[Place]) -> Result<Vec<Device>> {
    let mut devices = vec![Device::flex()];
    if !asked.is_empty() {
        for place in asked {
            let device = open(*place)?;
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        return Ok(devices);
    }
    for name in [("ndarray", cfg!(feature = "ndarray")), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))] {
        if let (name, true) = name {
            devices.push(open(name.parse().expect("the name of a device"))?);
        }
    }
    Ok(devices)
}

/// One row: what is found for each device and dtype, and what the panics or reports say.
struct Found {
    cells: Vec<Vec<Agreement>>,
    text: String,
}

const DTYPES: [DType; 2] = [DType::F64, DType::F32];

fn find(run: &Run, compare: &Compare) -> Found {
    let mut cells = vec![vec![Agreement::NotCompared; DTYPES.len()]; compare.names().len()];
    // What panics on the reference has nothing to be compared with.
    match catch(|| run(compare)) {
        Ok(found) => {
            for row in &found.rows {
                if let Some(dtype) = DTYPES.iter().position(|dtype| *dtype == row.dtype) {
                    cells[row.device][dtype] = row.agreement;
                }
            }
            Found { cells, text: found.to_string() }
        }
        Err(reason) => {
            cells[0] = vec![Agreement::Panic; DTYPES.len()];
            Found { cells, text: format!("the reference panics: {reason}") }
        }
    }
}

fn check(arguments: &Arguments, devices: &[Device]) -> Result<()> {
    let mut rows = Rows::default();
    layers(&mut rows);
    operations(&mut rows);
    dots(&mut rows);
    hard(&mut rows);
    rows.0.retain(|(name, _)| name.contains(&arguments.only));
    if rows.0.is_empty() {
        bail!("no row's name contains {:?}; run without --only to see them all", arguments.only);
    }
    let compare = GradCheck::compare(devices).set(|check| check.nondeterminism_tolerance(1e-12));
    let names = compare.names();
    let columns: Vec<String> = names.iter().flat_map(|name| DTYPES.map(|dtype| format!("{name} {dtype:?}"))).collect();
    let width = rows.0.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    println!("{:width$}  {}", "", columns.join("  "));
    let (mut unknown, mut mended) = (Vec::new(), Vec::new());
    for (row, run) in &rows.0 {
        let found = find(run, &compare);
        let mut line = format!("{row:width$}");
        let mut reasons: Vec<&str> = Vec::new();
        for ((at, cell), column) in found.cells.iter().flatten().enumerate().zip(&columns) {
            line += &format!("  {:<1$}", cell.to_string(), column.chars().count());
            let (device, dtype) = (&names[at / DTYPES.len()], DTYPES[at % DTYPES.len()]);
            let is_fault = !matches!(cell, Agreement::Ok | Agreement::NotCompared);
            match (is_fault, known(row, device, dtype)) {
                (true, Some((worst, reason))) if (Agreement::Precision..=worst).contains(cell) => reasons.push(reason),
                (true, _) => unknown.push(format!("{row} on {device} in {dtype:?}: {cell}")),
                (false, Some(_)) if *cell == Agreement::Ok => mended.push(format!("{row} on {device} in {dtype:?}")),
                _ => {}
            }
        }
        reasons.dedup();
        println!("{}{}{}", line.trim_end(), if reasons.is_empty() { "" } else { "    known: " }, reasons.join("; "));
        if arguments.reports && found.cells.iter().flatten().any(|cell| *cell > Agreement::NotCompared) {
            println!("{}", found.text);
        }
    }
    println!(
        "{} rows, {} devices, fusion {}",
        rows.0.len(),
        devices.len(),
        if cfg!(feature = "fusion") { "on" } else { "off" }
    );
    for cell in &mended {
        println!("known as a fault of Burn, and ok here: {cell}");
    }
    if !unknown.is_empty() {
        bail!("{} faults that are not known, run with --reports to see them: {}", unknown.len(), unknown.join(", "));
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    report(|| {
        let checked = check(&arguments, &devices(&arguments.device)?);
        forget_panics(); // Each is a finding, on a device's thread as well.
        checked
    })
}
