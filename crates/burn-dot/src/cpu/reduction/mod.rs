//! Products where one input has a single vector for each batch index: rows with rows, and vectors with matrices.
//!
//! `out[b, j] = Σₖ x[b, k] y[b, j, k]`. Every contiguous row is read once: its dot product and its norm come from one pass, and in the
//! backward pass its gradient is written while it is still in the cache. Memory bandwidth sets the pace.
//!
//! Here is what both passes share; [`mod@forward`] and [`mod@backward`] have one each. [`Chunks`] decides how rows are read, [`GradWriter`] how
//! gradients are written. Rows at equal strides go to the loops of [`tasks`] as one group; only those are compiled for each instruction set.

use core::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    element::{self, Compute, Element},
    norms::Scale,
    threads,
};

mod backward;
mod chunks;
mod forward;
mod tasks;

pub(super) use backward::{BackwardTensors, backward};
use chunks::{Chunks, GROUP, GradWriter, Group, Scratch};
pub(super) use forward::{ForwardTensors, forward};

/// The tensors of a product whose `x` has nothing free, each by its first element: the inputs, and [`ForwardTensors`] or
/// [`BackwardTensors`].
#[derive(Clone, Copy)]
pub(super) struct Rows<T, P> {
    pub x: *const T,
    pub y: *const T,
    pub pass: P,
}

// SAFETY: tasks on several threads read elements of dtypes that may be shared, and each writes to elements of its own: see `forward` and
// `backward`, which alone share one.
unsafe impl<T: Send + Sync, O: Send + Sync> Sync for Rows<T, ForwardTensors<O>> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, O: Send + Sync> Sync for Rows<T, BackwardTensors<T, O>> {}

/// A normalized row in memory: the scale of each vector, and the cosine.
pub(super) type SavedRow = [f64; 3];

/// A row and its counterpart, normalized.
#[derive(Clone, Copy, Default)]
struct Normalized {
    scales: [Scale; 2],
    cosine: f64,
}

impl Normalized {
    /// From the sums of products; `None` where one may have left the range of f64.
    fn new<R: Compute>([xx, xy, yy]: [f64; 3], epsilon: f64) -> Option<Self> {
        let scales = [xx, yy].map(|square| Scale::new::<R>(square, epsilon));
        // Also below epsilon: products of tiny vectors are subnormal. The squares of the smallest are lost, but zeros are harmless.
        let tiny = |square: f64| element::sqrt(square) < *R::NORMS.start() && (square != 0.0 || xy != 0.0);
        let in_range = scales.iter().all(|scale| scale.is_within(R::NORMS)) && !tiny(xx) && !tiny(yy);
        in_range.then(|| Normalized { scales, cosine: xy * scales[0].inverse() * scales[1].inverse() })
    }

    fn save(&self) -> SavedRow {
        [self.scales[0].0, self.scales[1].0, self.cosine]
    }

    fn load([x, y, cosine]: SavedRow) -> Self {
        Normalized { scales: [Scale(x), Scale(y)], cosine }
    }
}

/// What every task of a product knows.
struct RowProduct<'a, T, P> {
    rows: Rows<T, P>,
    chunks: &'a Chunks,
    writer: GradWriter,
    epsilon: Option<f64>,
}

/// Whether [`forward`] and [`backward`] are true of every normalized input: f64 holds all squares of the smaller dtypes.
pub(super) fn is_infallible<T: Element>() -> bool {
    T::Compute::NORMS.contains(&0.0) && T::Compute::NORMS.contains(&f64::INFINITY)
}

/// Cuts the work into ranges; true if all of them are.
fn all_ranges(count: usize, cost: usize, writer: GradWriter, task: impl Fn(Range<usize>) -> bool + Send + Sync) -> bool {
    let all = AtomicBool::new(true);
    threads::for_each_range(count, cost, |range| {
        let _fence = writer.fence();
        if !task(range) {
            all.store(false, Ordering::Relaxed);
        }
    });
    all.into_inner()
}

impl<T: Element, P> RowProduct<'_, T, P> {
    /// Normalizes the rows of a group. False where a square is beyond f64.
    ///
    /// # Safety
    ///
    /// The group is of the space that [`forward`] or [`backward`] was called with.
    unsafe fn normalize(&self, group: &Group, epsilon: f64, scratch: &mut Scratch<T>, to: &mut [Normalized]) -> bool {
        let mut sums = [[0.0; 3]; GROUP];
        let sums = &mut sums[..group.rows];
        // SAFETY: the rows of the space are within the inputs.
        unsafe { self.chunks.sums([self.rows.x, self.rows.y], group, scratch, sums) };
        for (to, &mut sums) in to.iter_mut().zip(sums) {
            let Some(normalized) = Normalized::new::<T::Compute>(sums, epsilon) else { return false };
            *to = normalized;
        }
        true
    }
}
