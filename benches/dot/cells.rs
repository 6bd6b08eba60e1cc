//! What is measured: the cells, their inputs, and the answer by plain f64 loops that every engine must give before it is timed.

use burn::tensor::{bf16, f16};
use clap::ValueEnum;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The floor on the norm; tf.keras' default, and `Dot`'s.
pub const FLOOR: f64 = 1e-6;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    F16,
    BF16,
    F64,
}

impl Dtype {
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn encode(self, x: f64) -> Vec<u8> {
        match self {
            Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
            Dtype::F64 => x.to_le_bytes().to_vec(),
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f64> {
        fn each<const N: usize>(bytes: &[u8], number: fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|&bytes| number(bytes)).collect()
        }
        match self {
            Dtype::F32 => each(bytes, |x| f32::from_le_bytes(x).into()),
            Dtype::F16 => each(bytes, |x| f16::from_le_bytes(x).to_f64()),
            Dtype::BF16 => each(bytes, |x| bf16::from_le_bytes(x).to_f64()),
            Dtype::F64 => each(bytes, f64::from_le_bytes),
        }
    }

    /// Allowed error, relative to the sum of the absolute terms. Wide enough for any order of summation and, in the half types,
    /// for peers that round between steps; far too narrow for a wrong formula or for sums in f16.
    pub fn tolerance(self) -> f64 {
        match self {
            Dtype::F32 => 64.0 * f64::from(f32::EPSILON),
            Dtype::F64 => 64.0 * f64::EPSILON,
            Dtype::F16 => 8.0 * f16::EPSILON.to_f64(),
            Dtype::BF16 => 8.0 * bf16::EPSILON.to_f64(),
        }
    }
}

/// Which loop it is at heart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Row,
    Matvec,
    Gemm,
}

/// One product to measure; workers get it as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    pub cell: String,
    pub kind: Kind,
    pub dtype: Dtype,
    pub normalize: bool,
    pub lhs: Vec<usize>,
    pub rhs: Vec<usize>,
    pub axes: (usize, usize),
    /// The plain product in the notation of Einstein sums, for peers; rows give `b`, to be reshaped to `(b, 1)`.
    pub einsum: String,
}

impl Case {
    pub fn title(&self) -> String {
        let dtype = if self.dtype == Dtype::F32 { String::new() } else { format!(" {}", self.dtype.name()) };
        format!("{}{dtype}{}", self.cell, if self.normalize { ", normalised" } else { "" })
    }

    pub fn sides(&self) -> (Side, Side) {
        (Side::new(&self.lhs, self.axes.0), Side::new(&self.rhs, self.axes.1))
    }
}

type Row = (&'static str, Kind, &'static [usize], &'static [usize], (usize, usize), &'static str, &'static [Dtype]);

const ALL: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];
const CELLS: &[Row] = &[
    ("row-small", Kind::Row, &[32, 8], &[32, 8], (1, 1), "bk,bk->b", &[Dtype::F32]),
    ("row-1k", Kind::Row, &[1024, 64], &[1024, 64], (1, 1), "bk,bk->b", &[Dtype::F32]),
    ("row-4k", Kind::Row, &[4096, 512], &[4096, 512], (1, 1), "bk,bk->b", ALL),
    ("row-64k", Kind::Row, &[65536, 128], &[65536, 128], (1, 1), "bk,bk->b", &[Dtype::F32]),
    ("matvec", Kind::Matvec, &[256, 128], &[256, 200, 128], (1, 2), "bk,bnk->bn", &[Dtype::F32]),
    ("attn", Kind::Gemm, &[32, 128, 64], &[32, 128, 64], (2, 2), "bmk,bnk->bmn", &[Dtype::F32, Dtype::F16, Dtype::BF16]),
    ("transposed", Kind::Gemm, &[64, 128, 96], &[64, 80, 128], (1, 2), "bkm,bnk->bmn", &[Dtype::F32]),
    ("mid-4d", Kind::Gemm, &[8, 16, 32, 24], &[8, 12, 24, 20], (3, 2), "bsmk,btkn->bsmtn", &[Dtype::F32]),
    ("big-gemm", Kind::Gemm, &[4, 512, 512], &[4, 512, 512], (2, 2), "bmk,bnk->bmn", &[Dtype::F32]),
];

pub fn names() -> impl Iterator<Item = &'static str> {
    CELLS.iter().map(|cell| cell.0)
}

/// The cells of these names, plain and normalised, in each of their dtypes.
pub fn cases(names: &[String]) -> Vec<Case> {
    let chosen = CELLS.iter().filter(|cell| names.iter().any(|name| name == cell.0));
    let variants = chosen.flat_map(|cell| cell.6.iter().flat_map(move |&dtype| [(cell, dtype, false), (cell, dtype, true)]));
    variants
        .map(|(&(name, kind, lhs, rhs, axes, einsum, _), dtype, normalize)| {
            let (cell, einsum) = (name.into(), einsum.into());
            Case { cell, kind, dtype, normalize, lhs: lhs.into(), rhs: rhs.into(), axes, einsum }
        })
        .collect()
}

/// Row products of `(n/128) × 128`, n from 2¹⁰ to 2²⁴.
pub fn growing_cases() -> Vec<Case> {
    let sizes = (10..=24).flat_map(|power| [(power, false), (power, true)]);
    sizes
        .map(|(power, normalize)| {
            let shape = vec![(1 << power) / 128, 128];
            let (cell, einsum) = (format!("2^{power}"), "bk,bk->b".into());
            Case { cell, kind: Kind::Row, dtype: Dtype::F32, normalize, lhs: shape.clone(), rhs: shape, axes: (1, 1), einsum }
        })
        .collect()
}

/// Where the numbers of an input lie: `(batch, outer, k, inner)`, free index `outer · inner`.
#[derive(Clone, Copy)]
pub struct Side {
    pub batch: usize,
    pub outer: usize,
    pub k: usize,
    pub inner: usize,
}

impl Side {
    fn new(shape: &[usize], axis: usize) -> Self {
        let (outer, inner) = (shape[1..axis].iter().product(), shape[axis + 1..].iter().product());
        Side { batch: shape[0], outer, k: shape[axis], inner }
    }

    pub fn free(&self) -> usize {
        self.outer * self.inner
    }

    /// The same numbers as matrices `(free, k)` with strides, for products that take no copy.
    pub fn matrices(&self) -> Matrices {
        let Side { outer, k, inner, .. } = *self;
        let batch_stride = outer * k * inner;
        match (outer, inner) {
            (_, 1) => Matrices { blocks: 1, free: outer, k, free_stride: k, k_stride: 1, block_stride: 0, batch_stride },
            _ => Matrices {
                blocks: outer,
                free: inner,
                k,
                free_stride: 1,
                k_stride: inner,
                block_stride: k * inner,
                batch_stride,
            },
        }
    }

    fn index(&self, batch: usize, free: usize, k: usize) -> usize {
        ((batch * self.outer + free / self.inner) * self.k + k) * self.inner + free % self.inner
    }
}

/// One input as matrices: `blocks` of them in each batch, each `free × k`.
#[derive(Clone, Copy)]
pub struct Matrices {
    pub blocks: usize,
    pub free: usize,
    pub k: usize,
    pub free_stride: usize,
    pub k_stride: usize,
    pub block_stride: usize,
    pub batch_stride: usize,
}

/// The two inputs in the dtype of the case, the same on every run.
pub fn inputs(case: &Case) -> [Vec<u8>; 2] {
    let draw = |shape: &[usize], seed| -> Vec<u8> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..shape.iter().product()).flat_map(|_| case.dtype.encode(random.random_range(-1.0..1.0))).collect()
    };
    [draw(&case.lhs, 1), draw(&case.rhs, 2)]
}

/// A number, and the sum of the absolute values of the terms that made it.
type Scaled = (f64, f64);

/// Output and gradients of a case, the cotangent being all ones.
pub struct Answer([Vec<Scaled>; 3]);

/// Normalised rows of one input in one batch, with their norms (1 where nothing is to be normalised).
struct Rows {
    rows: Vec<Vec<f64>>,
    norms: Vec<f64>,
}

fn rows(side: &Side, data: &[f64], batch: usize, normalize: bool) -> Rows {
    let mut rows: Vec<Vec<f64>> =
        (0..side.free()).map(|free| (0..side.k).map(|k| data[side.index(batch, free, k)]).collect()).collect();
    let norm = |row: &Vec<f64>| if normalize { row.iter().map(|x| x * x).sum::<f64>().sqrt().max(FLOOR) } else { 1.0 };
    let norms: Vec<f64> = rows.iter().map(norm).collect();
    rows.iter_mut().zip(&norms).for_each(|(row, norm)| row.iter_mut().for_each(|x| *x /= norm));
    Rows { rows, norms }
}

/// The answer by the definition. With a cotangent of ones the gradient that reaches each row is the sum of the other side's.
pub fn answer(case: &Case, inputs: &[Vec<u8>; 2]) -> Answer {
    let (left, right) = case.sides();
    let (lhs, rhs) = (case.dtype.decode(&inputs[0]), case.dtype.decode(&inputs[1]));
    let batches: Vec<_> = (0..left.batch)
        .into_par_iter()
        .map(|batch| {
            let (u, v) = (rows(&left, &lhs, batch, case.normalize), rows(&right, &rhs, batch, case.normalize));
            let out = u.rows.iter().flat_map(|u| v.rows.iter().map(|v| dot(u, v))).collect::<Vec<_>>();
            (out, gradient(&u, &v, case.normalize), gradient(&v, &u, case.normalize))
        })
        .collect();
    let mut grads = [vec![(0.0, 0.0); lhs.len()], vec![(0.0, 0.0); rhs.len()]];
    for (batch, (_, grad_lhs, grad_rhs)) in batches.iter().enumerate() {
        for (side, grad, from) in [(&left, 0, grad_lhs), (&right, 1, grad_rhs)] {
            for (i, &value) in from.iter().enumerate() {
                grads[grad][side.index(batch, i / side.k, i % side.k)] = value;
            }
        }
    }
    let [grad_lhs, grad_rhs] = grads;
    Answer([batches.into_iter().flat_map(|batch| batch.0).collect(), grad_lhs, grad_rhs])
}

fn dot(u: &[f64], v: &[f64]) -> Scaled {
    u.iter().zip(v).fold((0.0, 0.0), |(sum, scale), (u, v)| (sum + u * v, scale + (u * v).abs()))
}

/// `w`, or `(w − u (u·w)) / ‖x‖`, with `w` the sum of the other side's rows.
fn gradient(own: &Rows, other: &Rows, normalize: bool) -> Vec<Scaled> {
    let mut sum = vec![(0.0, 0.0); own.rows[0].len()];
    for row in &other.rows {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum = (sum.0 + x, sum.1 + x.abs()));
    }
    if !normalize {
        return own.rows.iter().flat_map(|_| sum.iter().copied()).collect();
    }
    let row = |(u, norm): (&Vec<f64>, &f64)| {
        let (along, scale) = u.iter().zip(&sum).fold((0.0, 0.0), |(a, s), (u, w)| (a + u * w.0, s + u.abs() * w.1));
        let each = u.iter().zip(&sum).map(|(u, w)| ((w.0 - u * along) / norm, (w.1 + u.abs() * scale) / norm));
        each.collect::<Vec<_>>()
    };
    own.rows.iter().zip(&own.norms).flat_map(row).collect()
}

/// Compares what an engine gave with the answer; engines without gradients give the output only.
pub fn check(case: &Case, answer: &Answer, given: &[Vec<u8>]) -> Result<(), String> {
    for ((name, expected), given) in ["out", "gradient of lhs", "gradient of rhs"].into_iter().zip(&answer.0).zip(given) {
        let given = case.dtype.decode(given);
        if given.len() != expected.len() {
            return Err(format!("wrong: {name} has {} numbers, not {}", given.len(), expected.len()));
        }
        let error = |(given, &(value, scale)): (&f64, &Scaled)| (given - value).abs() / (scale + f64::MIN_POSITIVE);
        // NaN counts as infinitely wrong; `f64::max` would drop it.
        let worst = given.iter().zip(expected).map(error).fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { b.max(a) });
        if worst > case.dtype.tolerance() {
            return Err(format!("wrong: max error of {name} {worst:.1e} of its terms, allowed {:.1e}", case.dtype.tolerance()));
        }
    }
    Ok(())
}
