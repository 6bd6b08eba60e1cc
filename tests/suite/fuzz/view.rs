//! Random views: how a tensor lies in memory, and where in that memory each of its elements is, by index arithmetic of its own.

use burn::{
    prelude::*,
    tensor::{Slice, kind::Basic},
};
use rand::{RngExt, rngs::StdRng, seq::SliceRandom};

/// A view of a contiguous tensor.
#[derive(Clone, Debug)]
pub struct View {
    /// Shape of the contiguous tensor.
    pub memory: Vec<usize>,
    /// What leads from it to the view.
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Permute(Vec<usize>),
    Flip(usize),
    /// An axis, the first index and the step between indices.
    Slice {
        axis: usize,
        start: usize,
        step: usize,
        size: usize,
    },
    /// An axis of size 1 is repeated.
    Expand {
        axis: usize,
        size: usize,
    },
}

impl View {
    pub fn contiguous(shape: &[usize]) -> Self {
        View { memory: shape.to_vec(), steps: vec![] }
    }

    /// A random view of this shape.
    pub fn random(shape: &[usize], rng: &mut StdRng) -> Self {
        let mut view = View::contiguous(shape);
        for _ in 0..rng.random_range(0..5) {
            view = view.of_something(rng);
        }
        view
    }

    /// The same view of a tensor that is itself a random view of something.
    fn of_something(self, rng: &mut StdRng) -> Self {
        let View { mut memory, mut steps } = self;
        let axis = rng.random_range(0..memory.len());
        let size = memory[axis];
        // Burn 0.22.1 refuses to expand what is empty, and forgets that a slice of it is tracked.
        let empty = memory.contains(&0);
        let step = match rng.random_range(0..5) {
            0 => Step::Flip(axis),
            // Now and then only: what is repeated hides what is swapped.
            1 if size > 1 && !empty && rng.random_bool(0.4) => {
                memory[axis] = 1;
                Step::Expand { axis, size }
            }
            2 if !empty && memory.iter().product::<usize>() < 1 << 20 => {
                let (start, step) = (rng.random_range(0..3), rng.random_range(1..4));
                memory[axis] = start + (size - 1) * step + 1 + rng.random_range(0..3);
                Step::Slice { axis, start, step, size }
            }
            _ => {
                let mut order: Vec<usize> = (0..memory.len()).collect();
                order.shuffle(rng);
                let mut before = memory.clone();
                order.iter().zip(&memory).for_each(|(&from, &size)| before[from] = size);
                memory = before;
                Step::Permute(order)
            }
        };
        steps.insert(0, step);
        View { memory, steps }
    }

    /// Whether some elements are the same in memory.
    pub fn repeats(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Expand { .. }))
    }

    /// Whether axes are permuted after one was repeated.
    pub fn permutes_what_repeats(&self) -> bool {
        let after = self.steps.iter().skip_while(|step| !matches!(step, Step::Expand { .. }));
        after.into_iter().any(|step| matches!(step, Step::Permute(_)))
    }

    /// Where in memory each element is, in row-major order.
    pub fn places(&self) -> Vec<usize> {
        let mut axes: Vec<(usize, isize)> = Vec::new();
        for (i, &size) in self.memory.iter().enumerate() {
            axes.push((size, self.memory[i + 1..].iter().product::<usize>() as isize));
        }
        let mut first = 0;
        for step in &self.steps {
            match step {
                Step::Permute(order) => axes = order.iter().map(|&axis| axes[axis]).collect(),
                Step::Flip(axis) => {
                    let (size, stride) = axes[*axis];
                    first += (size as isize - 1).max(0) * stride;
                    axes[*axis].1 = -stride;
                }
                Step::Slice { axis, start, step, size } => {
                    first += *start as isize * axes[*axis].1;
                    axes[*axis] = (*size, axes[*axis].1 * *step as isize);
                }
                Step::Expand { axis, size } => axes[*axis] = (*size, 0),
            }
        }
        // The other axes of what is empty may be too large to be gone through.
        if axes.iter().any(|&(size, _)| size == 0) {
            return Vec::new();
        }
        let places = axes.iter().fold(vec![first], |places, &(size, stride)| {
            places.iter().flat_map(|place| (0..size as isize).map(move |i| place + i * stride)).collect()
        });
        places.into_iter().map(|place| place as usize).collect()
    }

    /// The view of a tensor of shape `memory`.
    pub fn of<const D: usize, K: Basic>(&self, mut x: Tensor<D, K>) -> Tensor<D, K> {
        for step in &self.steps {
            x = match step {
                Step::Permute(order) => x.permute(<[usize; D]>::try_from(&order[..]).expect("an axis for each")),
                Step::Flip(axis) => x.flip([*axis]),
                Step::Slice { axis, start, step, size } => {
                    let end = start + (size - 1) * step + 1;
                    x.slice_dim(*axis, Slice::with_step(*start as isize, Some(end as isize), *step as isize))
                }
                Step::Expand { axis, size } => {
                    let mut shape = x.dims();
                    shape[*axis] = *size;
                    x.expand(shape)
                }
            };
        }
        x
    }
}
