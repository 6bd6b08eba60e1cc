//! A yardstick for products of matrices: the `gemm` crate alone, into memory that is reused between calls.

use std::{cell::RefCell, rc::Rc};

use anyhow::{Result, bail};
use burn::tensor::f16;
use bytemuck::Pod;
use gemm::Parallelism;
use rayon::prelude::*;

use crate::cells::{Case, Dtype, Kind, Matrices};
use crate::worker::{Loaded, bytes, elements, fastest_of};

pub fn load(case: &Case, inputs: [Vec<u8>; 2]) -> Result<Loaded> {
    match (case.kind, case.dtype) {
        (Kind::Matmul, Dtype::F32) => Ok(products::<f32>(case, inputs, [0.0, 1.0])),
        (Kind::Matmul, Dtype::F16) => Ok(products(case, inputs, [f16::ZERO, f16::ONE])),
        (Kind::Matmul, dtype) => bail!("no {}", dtype.name()),
        _ => bail!("for products of matrices only"),
    }
}

/// Where a matrix begins, and its strides by row and column.
type View = (usize, usize, usize);

/// `dst (+)= lhs · rhs`
struct Product {
    sizes: (usize, usize, usize),
    dst: View,
    lhs: View,
    rhs: View,
    add: bool,
}

/// Products that add to the same matrix, to be made one after the other.
type Unit = Vec<Product>;

struct Gemm<T> {
    /// Output and gradients.
    units: [Vec<Unit>; 3],
    lhs: Vec<T>,
    rhs: Vec<T>,
    ones: Vec<T>,
    results: [Vec<T>; 3],
    constants: [T; 2],
}

fn products<T: Pod + Send + Sync>(case: &Case, inputs: [Vec<u8>; 2], constants: [T; 2]) -> Loaded {
    let (left, right) = case.sides();
    let out = left.batch * left.free() * right.free();
    let [lhs, rhs] = [elements::<T>(&inputs[0]), elements::<T>(&inputs[1])];
    let results = [vec![constants[0]; out], lhs.clone(), rhs.clone()];
    let units = plan(left.batch, &left.matrices(), &right.matrices());
    let gemm = Rc::new(RefCell::new(Gemm { units, lhs, rhs, ones: vec![constants[1]; out], results, constants }));
    let way = |name, passes: usize, batches: bool, inside: Parallelism| {
        let gemm = gemm.clone();
        (name, Box::new(move || (0..passes).for_each(|pass| gemm.borrow_mut().run(pass, batches, inside))) as Box<dyn FnMut()>)
    };
    let ways = |passes| {
        vec![
            way("threads over the batch", passes, true, Parallelism::None),
            way("threads within each product", passes, false, Parallelism::Rayon(0)),
            way("one thread", passes, false, Parallelism::None),
        ]
    };
    fastest_of(ways(1), ways(3), || gemm.borrow().results.iter().map(|result| bytes(result)).collect())
}

fn plan(batches: usize, left: &Matrices, right: &Matrices) -> [Vec<Unit>; 3] {
    let (m, n, k) = (left.free, right.free, left.k);
    let columns = right.blocks * n;
    let mut units = [vec![], vec![], vec![]];
    for batch in 0..batches {
        let lhs = |i: usize| (batch * left.batch_stride + i * left.block_stride, left.free_stride, left.k_stride);
        let rhs = |j: usize| (batch * right.batch_stride + j * right.block_stride, right.free_stride, right.k_stride);
        let out = |i: usize, j: usize| ((batch * left.blocks + i) * m * columns + j * n, columns, 1);
        for i in 0..left.blocks {
            for j in 0..right.blocks {
                units[0].push(vec![Product { sizes: (m, n, k), dst: out(i, j), lhs: lhs(i), rhs: turned(rhs(j)), add: false }]);
            }
            let product = |j| Product { sizes: (m, k, n), dst: lhs(i), lhs: out(i, j), rhs: rhs(j), add: j > 0 };
            units[1].push((0..right.blocks).map(product).collect());
        }
        for j in 0..right.blocks {
            let product = |i| Product { sizes: (n, k, m), dst: rhs(j), lhs: turned(out(i, j)), rhs: lhs(i), add: i > 0 };
            units[2].push((0..left.blocks).map(product).collect());
        }
    }
    units
}

fn turned((at, rows, columns): View) -> View {
    (at, columns, rows)
}

impl<T: Copy + Send + Sync + 'static> Gemm<T> {
    /// Pass 0 is the output, 1 and 2 are the gradients.
    fn run(&mut self, pass: usize, batches: bool, inside: Parallelism) {
        let (lhs, rhs) = [(&self.lhs, &self.rhs), (&self.ones, &self.rhs), (&self.ones, &self.lhs)][pass];
        let ([zero, one], dst) = (self.constants, Shared(self.results[pass].as_mut_ptr()));
        let make = |unit: &Unit| {
            let dst = &dst;
            for &Product { sizes: (m, n, k), dst: to, lhs: a, rhs: b, add } in unit {
                let (step, alpha) = (|stride: usize| stride as isize, if add { one } else { zero });
                // SAFETY: `plan` keeps every view within its array, and no two units write to the same matrix.
                unsafe {
                    let (to_at, a_at, b_at) = (dst.0.add(to.0), lhs.as_ptr().add(a.0), rhs.as_ptr().add(b.0));
                    let (to, a, b) = ((step(to.2), step(to.1)), (step(a.2), step(a.1)), (step(b.2), step(b.1)));
                    gemm::gemm(
                        m, n, k, to_at, to.0, to.1, add, a_at, a.0, a.1, b_at, b.0, b.1, alpha, one, false, false, false,
                        inside,
                    );
                }
            }
        };
        if batches { self.units[pass].par_iter().for_each(make) } else { self.units[pass].iter().for_each(make) }
    }
}

/// A pointer that threads may share, each writing to matrices of its own.
struct Shared<T>(*mut T);
// SAFETY: see `Gemm::run`.
unsafe impl<T: Send> Sync for Shared<T> {}
