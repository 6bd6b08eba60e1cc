//! Row products: which launches a forward and a backward pass need.

use burn_core::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;

use super::{
    kernels::rows::{self as kernels, SAVED},
    launch::{
        AxisGroup, DTypes, Grid, Units, View, address, assert_saved, block, contiguous, count, elem, elementwise, empty,
        forced, input, inputs, placeholder, scalar, strides, terms, whole, width,
    },
};
use crate::{
    error::Operand,
    layout::{Axes, Axis, DX, DY, OUT, OUT_INDEX, Space, Strides, TENSORS, X, Y},
    plan::{FloatOptions, Plan, Wanted},
};

/// Elements saved for the backward pass of a normalized product.
pub(super) fn saved_shape(plan: &Plan) -> [usize; 1] {
    [plan.batch * plan.m * plan.n * SAVED]
}

/// The product, and what is saved of it if `save` and the product is normalized; else a placeholder.
pub(super) fn forward(
    lhs: CubeTensor,
    rhs: CubeTensor,
    plan: &Plan,
    options: FloatOptions,
    save: bool,
) -> (CubeTensor, CubeTensor) {
    let dtypes = DTypes::new(lhs.dtype().into(), options);
    let [lhs, rhs] = inputs([lhs, rhs], plan, dtypes);
    let space = Space::new(plan, Strides { lhs: &strides(&lhs), rhs: &strides(&rhs), ..Strides::default() });
    let (x, y) = (View::new(&lhs, X), View::new(&rhs, Y));

    // The order of the output.
    let rows = Axes::new([&space.batch, &space.i, &space.j].into_iter().flat_map(|axes| axes.as_slice().iter().copied()));
    let terms = terms(&space.k);
    let axes: AxisGroup = rows.as_slice().iter().chain(&terms).copied().collect();
    let width = width([(x, &axes[..]), (y, &axes[..])]);
    let (row_count, vectors) = (rows.len(), count(&terms) / width);
    let last = terms.len() - 1;
    let perpendicular = [X, Y]
        .iter()
        .any(|&place| terms[last].stride[place] != 1 && rows.as_slice().last().is_some_and(|row| row.stride[place] == 1));
    let client = lhs.client.clone();
    let grid = Grid::new(Units::of(&client), row_count, vectors, perpendicular);
    let (cubes, dim) = grid.launch(&client, row_count);

    let save = save && options.normalize.is_some();
    let out = empty(&lhs, &plan.output, dtypes.output);
    let saved = if save { empty(&lhs, &saved_shape(plan), dtypes.accumulator) } else { placeholder(&lhs, dtypes.accumulator) };
    // SAFETY: the views' axes are those of `Space`, whose indices lie within the tensors; the kernel reads at such indices only. It writes
    // element `row` of the output, and `SAVED` elements there of what is saved, for rows before `row_count`, which is the output's length.
    // No loop is endless: `block` and the number of units are positive.
    unsafe {
        kernels::forward::launch_unchecked(
            &client,
            cubes,
            dim,
            address([&lhs, &rhs, &out, &saved], row_count.max(count(&terms))),
            width,
            x.arg(&axes),
            y.arg(&axes),
            whole(&out),
            whole(&saved),
            scalar(options.normalize.unwrap_or(1.0), dtypes.accumulator),
            row_count,
            vectors,
            grid.block,
            grid.rows(rows.as_slice().len(), terms.len(), dtypes.accumulator),
            options.normalize.is_some(),
            save,
            [elem(dtypes.input), elem(dtypes.output), elem(dtypes.accumulator)],
        );
    }
    (out, saved)
}

/// The gradients that are wanted, of lhs and of rhs. `vector` is the input with a single vector for each batch index; the other one is
/// not broadcast along the batch. `saved` is read where the product is normalized.
pub(super) fn backward(
    [lhs, rhs]: [CubeTensor; 2],
    grad: CubeTensor,
    saved: &CubeTensor,
    plan: &Plan,
    options: FloatOptions,
    vector: Operand,
    wanted: Wanted,
) -> [Option<CubeTensor>; 2] {
    let dtypes = DTypes::new(lhs.dtype().into(), options);
    let [lhs, rhs] = inputs([lhs, rhs], plan, dtypes);
    let grad = input(grad, &plan.output, dtypes.output);
    if options.normalize.is_some() {
        assert_saved(saved, &saved_shape(plan), dtypes.accumulator);
    }
    let mut space = Space::new(
        plan,
        Strides {
            lhs: &strides(&lhs),
            rhs: &strides(&rhs),
            out: &strides(&grad),
            grad_lhs: &contiguous(&plan.lhs.shape),
            grad_rhs: &contiguous(&plan.rhs.shape),
        },
    );
    let (shapes, normalize) = ([&plan.lhs.shape[..], &plan.rhs.shape[..]], options.normalize.is_some());
    let (grad, x_is_lhs) = (&grad, vector == Operand::Lhs);
    match vector {
        Operand::Lhs => {
            let (inputs, wanted) = ([&lhs, &rhs], [wanted.lhs, wanted.rhs]);
            BackwardPass { space, inputs, shapes, grad, saved, dtypes, normalize, x_is_lhs, wanted }.launch()
        }
        Operand::Rhs => {
            let (inputs, shapes, wanted) = ([&rhs, &lhs], [shapes[1], shapes[0]], [wanted.rhs, wanted.lhs]);
            space.swap();
            let [x, y] = BackwardPass { space, inputs, shapes, grad, saved, dtypes, normalize, x_is_lhs, wanted }.launch();
            [y, x]
        }
    }
}

/// The most vectors of a row that a unit has: the more, the fewer units read what is saved of the row.
const MOST_PER_UNIT: usize = 4;

/// How many of a row's vectors a unit has, a divisor of them: as many as leave `busy` units. `rows`: rows times chunks.
fn per_unit(vectors: usize, width: usize, rows: usize, busy: usize) -> usize {
    let is_divisor = |per_unit: usize| vectors.is_multiple_of(per_unit) && per_unit * width <= kernels::MOST_ELEMENTS;
    let fits = |&per_unit: &usize| is_divisor(per_unit) && rows * vectors >= per_unit * busy;
    [MOST_PER_UNIT, MOST_PER_UNIT / 2].into_iter().find(fits).unwrap_or(1)
}

/// The vectors of y that a unit iterates over at least, if there are so many: a chunk's sum is written once for all of them.
const LEAST_CHUNK: usize = 16;

/// How many of the `sums` vectors y a unit iterates over: all of them, if x alone has `vectors` enough for `busy` units; else fewer.
fn chunk(sums: usize, vectors: usize, busy: usize) -> usize {
    let chunks = (busy * MOST_PER_UNIT / vectors).clamp(1, (sums / LEAST_CHUNK).max(1));
    sums.div_ceil(chunks)
}

/// A backward pass: of x, which has a single vector for each batch index, and of y.
struct BackwardPass<'a> {
    space: Space,
    inputs: [&'a CubeTensor; 2],
    shapes: [&'a [usize]; 2],
    grad: &'a CubeTensor,
    saved: &'a CubeTensor,
    dtypes: DTypes,
    normalize: bool,
    x_is_lhs: bool,
    wanted: [bool; 2],
}

impl BackwardPass<'_> {
    /// Axes of x's vectors, and those along which x is the same: a batch that y alone has, and y's free axes.
    fn axes(&self) -> [Axes; 2] {
        let (own, shared) = self.space.batch.split_by(DX);
        [own, Axes::new(shared.as_slice().iter().chain(self.space.j.as_slice()).copied())]
    }

    /// The inputs as views. A plain gradient reads the other input only, and its own may be a placeholder.
    fn views(&self) -> [View<'_>; 2] {
        let (x, y) = (View::new(self.inputs[0], X), View::new(self.inputs[1], Y));
        match (self.normalize, self.wanted) {
            (false, [true, false]) => [y, y],
            (false, [false, true]) => [x, x],
            _ => [x, y],
        }
    }

    fn launch(self) -> [Option<CubeTensor>; 2] {
        let [own, sums] = self.axes();
        let terms = terms(&self.space.k);
        let axes: AxisGroup = own.as_slice().iter().chain(sums.as_slice()).chain(&terms).copied().collect();
        let DTypes { input, accumulator, .. } = self.dtypes;
        let like = self.inputs[0];
        let output_of =
            |wanted: bool, shape: &[usize]| if wanted { empty(like, shape, input) } else { placeholder(like, input) };
        let grad_y = output_of(self.wanted[1], self.shapes[1]);

        // An estimate: how wide vectors are, mostly 4, depends on whether gradients are in chunks.
        let vectors = own.len() * count(&terms).div_ceil(4);
        let busy = Units::of(&like.client).busy();
        let chunk = if self.wanted[0] { chunk(sums.len(), vectors, busy) } else { 1 };
        let chunks = sums.len().div_ceil(chunk);
        let in_chunks = self.wanted[0] && chunks > 1;
        let grad_x = match in_chunks {
            true => empty(like, &[chunks, self.shapes[0].iter().product()], accumulator),
            false => output_of(self.wanted[0], self.shapes[0]),
        };
        let saturate = self.normalize && self.dtypes.is_narrow();
        // A part of a sum may be beyond a range that the sum is within.
        let saturated = [saturate && !in_chunks, saturate];
        self.launch_chunks(
            &axes,
            [own.as_slice().len(), sums.as_slice().len()],
            [&grad_x, &grad_y],
            [chunk, chunks],
            saturated,
        );
        let grad_x = if in_chunks { sum_chunks(&grad_x, self.shapes[0], self.dtypes, saturate) } else { grad_x };
        [self.wanted[0].then_some(grad_x), self.wanted[1].then_some(grad_y)]
    }

    fn launch_chunks(
        &self,
        axes: &[Axis],
        [own_axes, sum_axes]: [usize; 2],
        [grad_x, grad_y]: [&CubeTensor; 2],
        [chunk, chunks]: [usize; 2],
        [saturate_x, saturate_y]: [bool; 2],
    ) {
        let [x, y] = self.views();
        let (to_x, to_y) = (View::new(grad_x, DX), View::new(grad_y, DY));
        let written = [(to_x, self.wanted[0]), (to_y, self.wanted[1])].into_iter().filter(|to| to.1).map(|to| to.0);
        let width = width([x, y].into_iter().chain(written).map(|view| (view, axes)));
        let (own, rest) = axes.split_at(own_axes);
        let (sums, terms) = rest.split_at(sum_axes);
        let vectors = count(terms) / width;
        let client = &grad_x.client;
        // Tests that force a reduction have small products.
        let busy = if forced().is_some() { 0 } else { Units::of(client).busy() };
        let per_unit = per_unit(vectors, width, count(own) * chunks, busy);
        let sharing = vectors / per_unit;
        let units = count(own) * sharing * chunks;
        let (cubes, dim) = elementwise(client, units);
        let DTypes { input, output, accumulator } = self.dtypes;
        // SAFETY: as in `forward` for what is read. `per_unit` divides `vectors`: the units that share a row write each of its
        // vectors once, of grad_x in their chunk, and of grad_y for the vectors y of their chunk. Indices beyond the last chunk write
        // nothing. Strides of a gradient that is wanted are those of its own shape. `chunk`, `block` and `sharing` are positive.
        unsafe {
            kernels::backward::launch_unchecked(
                client,
                cubes,
                dim,
                address([self.inputs[0], self.inputs[1], self.grad, self.saved, grad_x, grad_y], units.max(count(sums))),
                width,
                x.arg(axes),
                y.arg(axes),
                View::new(self.grad, OUT).arg(axes),
                View::of_groups(self.saved, OUT_INDEX, SAVED).arg(axes),
                to_x.arg(axes),
                to_y.arg(axes),
                scalar(self.dtypes.limit(), accumulator),
                count(own),
                count(sums),
                chunk,
                block(chunk),
                sharing,
                self.shapes[0].iter().product(),
                kernels::BackwardOptions {
                    own_axes,
                    sum_axes,
                    term_axes: terms.len(),
                    per_unit,
                    normalize: self.normalize,
                    x_is_lhs: self.x_is_lhs,
                    grad_x: self.wanted[0],
                    grad_y: self.wanted[1],
                    saturate_x,
                    saturate_y,
                },
                [elem(input), elem(output), elem(grad_x.dtype), elem(accumulator)],
            );
        }
    }
}

/// The sum of a gradient's chunks.
fn sum_chunks(chunks: &CubeTensor, shape: &[usize], dtypes: DTypes, saturate: bool) -> CubeTensor {
    let out = empty(chunks, shape, dtypes.input);
    let client = &out.client;
    let (count, len) = (chunks.shape()[0], chunks.shape()[1]);
    let row_axis = Axis { size: len, stride: [1; TENSORS] };
    let width = width([(View::new(chunks, X), &[row_axis][..]), (View::new(&out, X), &[row_axis])]);
    let vectors = len / width;
    let (cubes, dim) = elementwise(client, vectors);
    // SAFETY: units before `vectors` read that vector of each chunk, and write it; both tensors are contiguous.
    unsafe {
        kernels::sum_chunks::launch_unchecked(
            client,
            cubes,
            dim,
            address([chunks, &out], vectors),
            width,
            whole(chunks),
            whole(&out),
            scalar(dtypes.limit(), dtypes.accumulator),
            count,
            block(count),
            vectors,
            saturate,
            [elem(dtypes.accumulator), elem(dtypes.input)],
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_have_as_many_vectors_as_leave_the_device_busy() {
        // Vectors of a row, rows, units: vectors that a unit has.
        for (vectors, rows, busy, expected) in [
            (64, 1 << 20, 1 << 18, 4),
            (64, 1 << 14, 1 << 18, 4),
            (64, 1 << 13, 1 << 18, 2),
            (64, 1 << 12, 1 << 18, 1),
            (64, 1024, 1 << 14, 4),
            (64, 1023, 1 << 14, 2),
            (64, 511, 1 << 14, 1),
            (64, 1, 1 << 14, 1),
            // What does not divide.
            (66, 1024, 1 << 14, 2),
            (65, 1 << 20, 1 << 14, 1),
            (1, 1 << 20, 1 << 14, 1),
        ] {
            assert_eq!(per_unit(vectors, 4, rows, busy), expected, "{rows} rows of {vectors} vectors, {busy} units");
        }
        assert_eq!(per_unit(64, 8, 1 << 20, 1 << 18), 2, "vectors of 8 elements");
    }

    #[test]
    fn few_vectors_that_meet_many_iterate_over_chunks_of_them() {
        // Vectors y, vectors of x's rows, units: vectors y of a chunk.
        for (sums, vectors, busy, expected) in [
            (1, 64, 1 << 14, 1),
            (15, 64, 1 << 14, 15),
            (3000, 1 << 16, 1 << 14, 3000),
            (3000, 1 << 15, 1 << 14, 1500),
            (3000, 1 << 15, 1 << 18, 94),
            (3000, 1, 1 << 18, 17),
        ] {
            let given = chunk(sums, vectors, busy);
            assert_eq!(given, expected, "{sums} vectors with {vectors}, {busy} units");
            // Their sums are a sixteenth of what they are read from.
            assert!(sums.div_ceil(given) <= (sums / LEAST_CHUNK).max(1));
        }
    }
}
