//! Normalized matrices: Burn's matmul, and the launches around it.

use burn_core::backend::{TensorMetadata, ops::FloatTensorOps};
use burn_core::tensor::{FloatDType, Shape};
use burn_cubecl::{
    CubeBackend,
    kernel::matmul::{MatmulStrategy, matmul},
    tensor::CubeTensor,
};

use super::{
    kernels::matrices::{self as kernels, CosineAxes, SAVED, Sides},
    launch::{
        AxisGroup, DTypes, Grid, Units, View, address, assert_saved, block, contiguous, count, elem, elementwise, empty,
        inputs, placeholder, scalar, strides, terms, whole, width,
    },
};
use crate::{
    layout::{Axes, Axis, DX, DY, OUT_INDEX, Space, Strides, TENSORS, X, X_INDEX, Y, Y_INDEX},
    plan::{FloatOptions, Input, Plan, Wanted},
    reference,
};

/// Elements saved for the backward pass.
pub(super) fn saved_shape(plan: &Plan) -> [usize; 1] {
    let batch = |input: &Input| input.batch_shape().iter().product::<usize>();
    [(batch(&plan.lhs) * plan.m + batch(&plan.rhs) * plan.n) * SAVED]
}

/// The vectors of both inputs: their axes, and the contracted ones.
struct VectorAxes {
    x: AxisGroup,
    y: AxisGroup,
    terms: AxisGroup,
}

impl VectorAxes {
    fn new(space: &Space) -> Self {
        let own = |place: usize, free: &Axes| {
            let batch = space.batch.split_by(place).0;
            Axes::new(batch.as_slice().iter().chain(free.as_slice()).copied()).as_slice().into()
        };
        VectorAxes { x: own(X_INDEX, &space.i), y: own(Y_INDEX, &space.j), terms: terms(&space.k) }
    }

    /// Axes of views of lhs and of rhs.
    fn axes(&self) -> [AxisGroup; 2] {
        [&self.x, &self.y].map(|own| own.iter().chain(&self.terms).copied().collect())
    }

    fn counts(&self) -> [usize; 2] {
        [count(&self.x), count(&self.y)]
    }

    fn sides(&self) -> Sides {
        Sides { x_axes: self.x.len(), y_axes: self.y.len(), term_axes: self.terms.len() }
    }
}

/// The product, and what is saved of it.
pub(super) fn forward(lhs: CubeTensor, rhs: CubeTensor, plan: &Plan, options: FloatOptions) -> (CubeTensor, CubeTensor) {
    let dtypes = DTypes::new(lhs.dtype().into(), options);
    let [lhs, rhs] = inputs([lhs, rhs], plan, dtypes);
    let space = Space::new(plan, Strides { lhs: &strides(&lhs), rhs: &strides(&rhs), ..Strides::default() });
    let vectors = VectorAxes::new(&space);
    let norms = empty(&lhs, &saved_shape(plan), dtypes.accumulator);
    launch_norms([&lhs, &rhs], &norms, &vectors, dtypes, options);
    let product = {
        let lhs = matrix(lhs.clone(), &plan.lhs, [plan.m, plan.k]);
        let rhs = matrix(rhs.clone(), &plan.rhs, [plan.n, plan.k]);
        multiply(lhs, transposed(rhs), &shape(&plan.batch_shape, [plan.m, plan.n]), dtypes.accumulator)
    };
    let out = empty(&lhs, &plan.output, dtypes.output);
    launch_cosines(&product, [&lhs, &rhs], &norms, &out, &space, vectors.counts()[0], dtypes);
    (out, norms)
}

fn shape(batch: &[usize], matrix: [usize; 2]) -> Vec<usize> {
    batch.iter().copied().chain(matrix).collect()
}

/// An input as `(batch, free, k)`: a view where its strides allow it.
fn matrix(x: CubeTensor, input: &Input, matrix: [usize; 2]) -> CubeTensor {
    let shape = shape(input.batch_shape(), matrix);
    CubeBackend::float_reshape(CubeBackend::float_permute(x, &input.order), Shape::from(shape))
}

fn transposed(x: CubeTensor) -> CubeTensor {
    let rank = x.rank();
    CubeBackend::float_swap_dims(x, rank - 2, rank - 1)
}

/// Burn's matmul into a contiguous tensor of the accumulator's dtype.
fn multiply(lhs: CubeTensor, rhs: CubeTensor, shape: &[usize], dtype: FloatDType) -> CubeTensor {
    let out = empty(&lhs, shape, dtype);
    match matmul(lhs, rhs, Some(out), MatmulStrategy::default(), dtype.into()) {
        Ok(out) => out,
        // As Burn's own product does.
        Err(error) => panic!("Dot: Burn has no matrix product for these inputs: {error:?}"),
    }
}

fn launch_norms([lhs, rhs]: [&CubeTensor; 2], norms: &CubeTensor, vectors: &VectorAxes, dtypes: DTypes, options: FloatOptions) {
    let client = &lhs.client;
    let [x_axes, y_axes] = vectors.axes();
    let (x, y) = (View::new(lhs, X), View::new(rhs, Y));
    // The narrower of both: a second launch would be a fourth of this pass.
    let width = width([(x, &x_axes[..]), (y, &y_axes[..])]);
    let [x_count, y_count] = vectors.counts();
    let per_row = count(&vectors.terms) / width;
    let grid = Grid::new(Units::of(client), x_count + y_count, per_row, false);
    let (cubes, dim) = grid.launch(client, x_count + y_count);
    let accumulator = dtypes.accumulator;
    let rows = |own: &AxisGroup| grid.rows(own.len(), vectors.terms.len(), accumulator);
    // SAFETY: the views' axes are those of `Space`, whose indices lie within the tensors. `norms` has `SAVED` elements for each vector of
    // both inputs, and each is written by the units of its row.
    unsafe {
        kernels::norms::launch_unchecked(
            client,
            cubes,
            dim,
            address([lhs, rhs, norms], (x_count + y_count).max(count(&vectors.terms))),
            width,
            x.arg(&x_axes),
            y.arg(&y_axes),
            whole(norms),
            scalar(options.normalize.unwrap_or(1.0), accumulator),
            x_count,
            y_count,
            per_row,
            grid.block,
            rows(&vectors.x),
            rows(&vectors.y),
            [elem(dtypes.input), elem(accumulator)],
        );
    }
}

fn launch_cosines(
    product: &CubeTensor,
    [lhs, rhs]: [&CubeTensor; 2],
    norms: &CubeTensor,
    out: &CubeTensor,
    space: &Space,
    x_count: usize,
    dtypes: DTypes,
) {
    let client = &out.client;
    // The order of the output.
    let of_out = Axes::new([&space.batch, &space.i, &space.j].into_iter().flat_map(|axes| axes.as_slice().iter().copied()));
    let terms = terms(&space.k);
    let axes: AxisGroup = of_out.as_slice().iter().chain(&terms).copied().collect();
    // Both are contiguous, in this order.
    let width = width([product, out].map(|tensor| (View::new(tensor, OUT_INDEX), of_out.as_slice())));
    let vectors = of_out.len() / width;
    let (cubes, dim) = elementwise(client, vectors);
    // SAFETY: product and output are contiguous and hold a vector for each unit before `vectors`, which alone reads and writes it. The other
    // views' axes are those of `Space`; those of norms count the vectors of an input, and those of rhs are behind those of lhs. A vector's
    // elements are neighbours along the last axis, whose size `width` divides.
    unsafe {
        kernels::cosines::launch_unchecked(
            client,
            cubes,
            dim,
            address([product, lhs, rhs, norms, out], of_out.len().max(count(&terms))),
            width,
            whole(product),
            View::new(lhs, X).arg(&axes),
            View::new(rhs, Y).arg(&axes),
            View::of_groups(norms, X_INDEX, SAVED).arg(of_out.as_slice()),
            View::of_groups(norms, Y_INDEX, SAVED).arg(of_out.as_slice()),
            whole(out),
            vectors,
            x_count,
            count(&terms),
            block(count(&terms)),
            CosineAxes { out_axes: of_out.as_slice().len(), term_axes: terms.len() },
            [elem(dtypes.input), elem(dtypes.output), elem(dtypes.accumulator)],
        );
    }
}

/// The gradients that are wanted, of lhs and of rhs. No batch is broadcast.
pub(super) fn backward(
    [lhs, rhs]: [CubeTensor; 2],
    grad: CubeTensor,
    norms: &CubeTensor,
    plan: &Plan,
    options: FloatOptions,
    wanted: Wanted,
) -> [Option<CubeTensor>; 2] {
    let dtypes = DTypes::new(lhs.dtype().into(), options);
    let accumulator = dtypes.accumulator;
    let [lhs, rhs] = inputs([lhs, rhs], plan, dtypes);
    assert_saved(norms, &saved_shape(plan), dtypes.accumulator);
    let space = Space::new(
        plan,
        Strides {
            lhs: &strides(&lhs),
            rhs: &strides(&rhs),
            grad_lhs: &contiguous(&plan.lhs.shape),
            grad_rhs: &contiguous(&plan.rhs.shape),
            ..Strides::default()
        },
    );
    let vectors = VectorAxes::new(&space);
    let sized = |free: usize| shape(&plan.batch_shape, [free, plan.k]);
    let unit_vectors = [plan.m, plan.n].map(|free| empty(&lhs, &sized(free), accumulator));
    launch_unit_vectors([&lhs, &rhs], norms, &unit_vectors, &vectors, dtypes);

    let grad = reference::cast::<CubeBackend>(grad, accumulator);
    let grad = CubeBackend::float_reshape(grad, Shape::from(shape(&plan.batch_shape, [plan.m, plan.n])));
    let product_x = wanted.lhs.then(|| multiply(grad.clone(), unit_vectors[1].clone(), &sized(plan.m), accumulator));
    let product_y = wanted.rhs.then(|| multiply(transposed(grad), unit_vectors[0].clone(), &sized(plan.n), accumulator));
    let output = |wanted: bool, shape: &[usize]| wanted.then(|| empty(&lhs, shape, dtypes.input));
    let grads = [output(wanted.lhs, &plan.lhs.shape), output(wanted.rhs, &plan.rhs.shape)];
    launch_project(&unit_vectors, [product_x, product_y], norms, &grads, &vectors, dtypes);
    grads
}

/// The inputs that a launch handles, and the width of its vectors.
struct Part {
    sides: [bool; 2],
    width: usize,
}

impl Part {
    /// One launch where the vectors of both inputs are equally wide. Else one for each, so that an input which is read element by element
    /// does not keep the other from wide vectors. An input without a width has no launch.
    fn of(widths: [Option<usize>; 2]) -> impl Iterator<Item = Part> {
        let parts = match widths {
            [Some(x), Some(y)] if x == y => [Some(Part { sides: [true, true], width: x }), None],
            [x, y] => {
                [x.map(|width| Part { sides: [true, false], width }), y.map(|width| Part { sides: [false, true], width })]
            }
        };
        parts.into_iter().flatten()
    }

    /// How many vectors of each input, and how many are before the first of them in norms, where those of rhs come second.
    fn counts(&self, [x, y]: [usize; 2]) -> ([usize; 2], usize) {
        let [has_x, has_y] = self.sides;
        ([if has_x { x } else { 0 }, if has_y { y } else { 0 }], if has_x { 0 } else { x })
    }
}

fn launch_unit_vectors(
    [lhs, rhs]: [&CubeTensor; 2],
    norms: &CubeTensor,
    [unit_x, unit_y]: &[CubeTensor; 2],
    vectors: &VectorAxes,
    dtypes: DTypes,
) {
    let client = &lhs.client;
    let axes = vectors.axes();
    let from = [View::new(lhs, X), View::new(rhs, Y)];
    let len = count(&vectors.terms);
    let unit_axes = contiguous_rows(1, len);
    let widths = [0, 1].map(|side| Some(width([(from[side], &axes[side][..]), (View::new(unit_x, X), &unit_axes[..])])));
    // In the place of an input that another launch reads: expanded, it may be a single element, and less than a vector of this one.
    let unread = placeholder(norms, dtypes.input);
    for part in Part::of(widths) {
        let ([x_count, y_count], norms_before) = part.counts(vectors.counts());
        let [x, y] = [0, 1].map(|side| if part.sides[side] { from[side] } else { View { tensor: &unread, ..from[side] } });
        let per_row = len / part.width;
        let (cubes, dim) = elementwise(client, (x_count + y_count) * per_row);
        // SAFETY: the views' axes are those of `Space`, whose indices lie within the tensors. Units of vectors that exist write one vector
        // of `N` elements each, at their own place in contiguous tensors of as many. A side with a count of 0 is neither read nor written.
        unsafe {
            kernels::unit_vectors::launch_unchecked(
                client,
                cubes,
                dim,
                address([lhs, rhs, norms, unit_x, unit_y], (x_count + y_count) * per_row),
                part.width,
                x.arg(&axes[0]),
                y.arg(&axes[1]),
                whole(norms),
                whole(unit_x),
                whole(unit_y),
                x_count,
                y_count,
                norms_before,
                per_row,
                vectors.sides(),
                [elem(dtypes.input), elem(dtypes.accumulator)],
            );
        }
    }
}

/// Axes of contiguous rows, whatever the tensor.
fn contiguous_rows(rows: usize, len: usize) -> [Axis; 2] {
    [Axis { size: rows, stride: [len as isize; TENSORS] }, Axis { size: len, stride: [1; TENSORS] }]
}

fn launch_project(
    unit_vectors: &[CubeTensor; 2],
    products: [Option<CubeTensor>; 2],
    norms: &CubeTensor,
    grads: &[Option<CubeTensor>; 2],
    vectors: &VectorAxes,
    dtypes: DTypes,
) {
    let client = &norms.client;
    let len = count(&vectors.terms);
    // What is not read or written is a placeholder.
    let [product_x, product_y] =
        [0, 1].map(|side| products[side].as_ref().or(products[1 - side].as_ref()).expect("a gradient is wanted"));
    let unwritten = placeholder(norms, dtypes.input);
    let [grad_x, grad_y] = [0, 1].map(|side| grads[side].as_ref().unwrap_or(&unwritten));
    let axes = vectors.axes();
    let to = [View::new(grad_x, DX), View::new(grad_y, DY)];
    let rows = vectors.counts().map(|count| contiguous_rows(count, len));
    let contiguous = |tensor: &CubeTensor, side: usize| View::new(tensor, X).arg(&rows[side]);
    // An input without a gradient has no rows.
    let widths = [0, 1].map(|side| {
        grads[side].as_ref().map(|_| width([(to[side], &axes[side][..]), (View::new(product_x, X), &rows[side][..])]))
    });
    for part in Part::of(widths) {
        let ([x_count, y_count], norms_before) = part.counts(vectors.counts());
        let per_row = len / part.width;
        let grid = Grid::new(Units::of(client), x_count + y_count, per_row, false);
        let (cubes, dim) = grid.launch(client, x_count + y_count);
        // SAFETY: unit vectors and products are contiguous rows of `len` elements, those of x before `x_count` and of y before `y_count`.
        // Each element of their gradients is written by the units of its row, at the strides of its own shape. A side with a count of 0,
        // which may be a placeholder, is neither read nor written.
        unsafe {
            kernels::project::launch_unchecked(
                client,
                cubes,
                dim,
                address([&unit_vectors[0], &unit_vectors[1], product_x, product_y, norms, grad_x, grad_y], len),
                part.width,
                contiguous(&unit_vectors[0], 0),
                contiguous(&unit_vectors[1], 1),
                contiguous(product_x, 0),
                contiguous(product_y, 1),
                whole(norms),
                to[0].arg(&axes[0]),
                to[1].arg(&axes[1]),
                scalar(dtypes.limit(), dtypes.accumulator),
                x_count,
                y_count,
                norms_before,
                per_row,
                grid.block,
                grid.rows(1, 1, dtypes.accumulator),
                vectors.sides(),
                dtypes.is_narrow(),
                [elem(dtypes.input), elem(dtypes.accumulator)],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_share_a_launch_where_their_vectors_are_equally_wide() {
        let parts = |widths| {
            Part::of(widths).map(|part| (part.sides, part.width, part.counts([5, 7]))).collect::<Vec<([bool; 2], usize, _)>>()
        };
        assert_eq!(parts([Some(4), Some(4)]), [([true, true], 4, ([5, 7], 0))]);
        // The norms of rhs are behind the five of lhs.
        assert_eq!(parts([Some(1), Some(4)]), [([true, false], 1, ([5, 0], 0)), ([false, true], 4, ([0, 7], 5))]);
        assert_eq!(parts([Some(2), None]), [([true, false], 2, ([5, 0], 0))]);
        assert_eq!(parts([None, Some(2)]), [([false, true], 2, ([0, 7], 5))]);
    }
}
