//! The forward pass: the outputs of rows, and what is saved of them.

use core::ops::Range;

use super::{
    super::{
        element::{Element, clamp_to_one},
        layout::{Axes, OUT, OUT_INDEX, Space},
    },
    Normalized, RowProduct, Rows, SavedRow, all_ranges,
    chunks::{Chunks, GROUP, GradWriter, Group, Scratch},
};

/// What a forward pass writes.
#[derive(Clone, Copy)]
pub(in super::super) struct ForwardTensors<O> {
    pub out: *mut O,
    /// One for each element of the output, if they are saved.
    pub saved: Option<*mut SavedRow>,
}

/// The product. False where squares were met that f64 cannot hold: the output is then not to be used.
///
/// # Safety
///
/// Every index of `space` is within the tensors, nothing in it is empty, and nothing else reads or writes `out` and what is
/// saved, both of which are initialized.
pub(in super::super) unsafe fn forward<T, O>(rows: Rows<T, ForwardTensors<O>>, space: &Space, epsilon: Option<f64>) -> bool
where
    T: Element,
    O: Element<Compute = T::Compute>,
{
    let product = &RowProduct { rows, chunks: &Chunks::new(&space.k), writer: GradWriter::Direct, epsilon };
    let all = &space.batch.followed_by(&space.j);
    // SAFETY: the rows of the range are the space's, which the caller says is within the tensors; no two rows share an element of
    // the output.
    all_ranges(all.len(), space.k.len(), GradWriter::Direct, |range| unsafe { product.forward(all, range) })
}

impl<T: Element, O: Element<Compute = T::Compute>> RowProduct<'_, T, ForwardTensors<O>> {
    /// The output of some rows.
    ///
    /// # Safety
    ///
    /// `all` are rows of the space that [`forward`] was called with, and nothing else reads or writes what belongs to these.
    unsafe fn forward(&self, all: &Axes, range: Range<usize>) -> bool {
        let scratch = &mut Scratch::new(self.chunks, self.writer);
        for group in self.chunks.groups(all, range, self.writer) {
            let mut out = [[0.0]; GROUP];
            let out = &mut out[..group.rows];
            // SAFETY: the group is of these rows: it is within the tensors, and its part of the output ours alone.
            unsafe {
                match self.epsilon {
                    None => self.chunks.sums([self.rows.x, self.rows.y], &group, scratch, out),
                    Some(epsilon) => {
                        if !self.cosines(&group, epsilon, scratch, out) {
                            return false;
                        }
                    }
                }
                for (row, &[out]) in out.iter().enumerate() {
                    *self.rows.pass.out.offset(group.offset(row, OUT)) = O::from_f64(out);
                }
            }
        }
        true
    }

    /// The cosines of a group, saved if asked for. False where a square is beyond f64.
    ///
    /// # Safety
    ///
    /// The group is of the space that [`forward`] was called with, and nothing else reads or writes what belongs to it.
    unsafe fn cosines(&self, group: &Group, epsilon: f64, scratch: &mut Scratch<T>, out: &mut [[f64; 1]]) -> bool {
        let mut normalized = [Normalized::default(); GROUP];
        let normalized = &mut normalized[..group.rows];
        // SAFETY: the group's rows are the space's, which is within the inputs.
        if unsafe { !self.normalize(group, epsilon, scratch, normalized) } {
            return false;
        }
        for ([out], normalized) in out.iter_mut().zip(&*normalized) {
            *out = clamp_to_one(normalized.cosine);
        }
        if let Some(saved) = self.rows.pass.saved {
            for (row, normalized) in normalized.iter().enumerate() {
                // SAFETY: there is a place for each row, ours alone.
                unsafe { *saved.offset(group.offset(row, OUT_INDEX)) = normalized.save() };
            }
        }
        true
    }
}
