//! The answer by plain loops in f64, from the definition. It uses neither Burn nor the code under test.

/// A tensor of known shape in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Array {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Array { shape: shape.to_vec(), data }
    }

    pub fn from_fn(shape: &[usize], mut value: impl FnMut(&[usize]) -> f64) -> Self {
        Array::new(shape, indices(shape).iter().map(|index| value(index)).collect())
    }

    fn offset(&self, index: &[usize]) -> usize {
        index.iter().zip(&self.shape).fold(0, |offset, (i, size)| offset * size + i)
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Array { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }
}

/// Every index of a shape in row-major order.
pub fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![vec![]], |all, &size| {
        all.iter().flat_map(|index| (0..size).map(move |i| [index.as_slice(), &[i]].concat())).collect()
    })
}

/// A product in the terms of the definition: axes already resolved.
#[derive(Clone, Debug)]
pub struct Product {
    /// Axes of lhs and rhs that meet.
    pub pairs: Vec<(usize, usize)>,
    pub batch_dims: usize,
    /// The floor on the norm, where normalized.
    pub floor: Option<f64>,
}

/// Output, gradients, and for each number the sum of the absolute values of its terms: the scale of its rounding error.
#[derive(Clone, Debug)]
pub struct Answer {
    pub out: Array,
    pub grad_lhs: Array,
    pub grad_rhs: Array,
    pub out_scale: Array,
    pub grad_lhs_scale: Array,
    pub grad_rhs_scale: Array,
}

pub fn output_shape(product: &Product, lhs: &[usize], rhs: &[usize]) -> Vec<usize> {
    let batch = (0..product.batch_dims).map(|axis| if lhs[axis] == 1 { rhs[axis] } else { lhs[axis] });
    let lhs_free = (product.batch_dims..lhs.len()).filter(|axis| product.pairs.iter().all(|pair| pair.0 != *axis));
    let rhs_free = (product.batch_dims..rhs.len()).filter(|axis| product.pairs.iter().all(|pair| pair.1 != *axis));
    let mut shape: Vec<usize> = batch.chain(lhs_free.map(|axis| lhs[axis])).chain(rhs_free.map(|axis| rhs[axis])).collect();
    if shape.len() == product.batch_dims && shape.len() < 2 {
        shape.push(1);
    }
    shape
}

/// The answer for `lhs`, `rhs` and the gradient `cotangent` that arrives at the output.
pub fn answer(product: &Product, lhs: &Array, rhs: &Array, cotangent: impl FnOnce(&[usize]) -> Array) -> Answer {
    let out_shape = output_shape(product, &lhs.shape, &rhs.shape);
    let cotangent = cotangent(&out_shape);
    let zeros = |shape: &[usize]| Array::new(shape, vec![0.0; shape.iter().product()]);
    let lhs_axes: Vec<usize> = product.pairs.iter().map(|pair| pair.0).collect();
    let rhs_axes: Vec<usize> = product.pairs.iter().map(|pair| pair.1).collect();
    let lhs_norm = norms(lhs, &lhs_axes, product.floor);
    let rhs_norm = norms(rhs, &rhs_axes, product.floor);
    let unit =
        |x: &Array, norm: &Array| Array::new(&x.shape, x.data.iter().zip(&norm.data).map(|(x, norm)| x / norm).collect());
    let (u, v) = (unit(lhs, &lhs_norm), unit(rhs, &rhs_norm));

    let (mut out, mut out_scale) = (zeros(&out_shape), zeros(&out_shape));
    let (mut grad_u, mut grad_u_scale) = (zeros(&lhs.shape), zeros(&lhs.shape));
    let (mut grad_v, mut grad_v_scale) = (zeros(&rhs.shape), zeros(&rhs.shape));
    for l in indices(&lhs.shape) {
        for r in indices(&rhs.shape) {
            // The indices meet where every contracted pair agrees and every batch index agrees (a batch of 1 agrees with all).
            let contracted = product.pairs.iter().all(|&(a, b)| l[a] == r[b]);
            let batch = (0..product.batch_dims).all(|i| l[i] == r[i] || lhs.shape[i] == 1 || rhs.shape[i] == 1);
            if !(contracted && batch) {
                continue;
            }
            let mut o: Vec<usize> = (0..product.batch_dims).map(|i| l[i].max(r[i])).collect();
            o.extend((product.batch_dims..l.len()).filter(|axis| !lhs_axes.contains(axis)).map(|axis| l[axis]));
            o.extend((product.batch_dims..r.len()).filter(|axis| !rhs_axes.contains(axis)).map(|axis| r[axis]));
            o.resize(out_shape.len(), 0);
            let (o, l, r) = (out.offset(&o), lhs.offset(&l), rhs.offset(&r));
            out.data[o] += u.data[l] * v.data[r];
            out_scale.data[o] += (u.data[l] * v.data[r]).abs();
            grad_u.data[l] += cotangent.data[o] * v.data[r];
            grad_u_scale.data[l] += (cotangent.data[o] * v.data[r]).abs();
            grad_v.data[r] += cotangent.data[o] * u.data[l];
            grad_v_scale.data[r] += (cotangent.data[o] * u.data[l]).abs();
        }
    }
    let (grad_lhs, grad_lhs_scale) = through_norm(lhs, &lhs_axes, product.floor, &lhs_norm, &u, &grad_u, &grad_u_scale);
    let (grad_rhs, grad_rhs_scale) = through_norm(rhs, &rhs_axes, product.floor, &rhs_norm, &v, &grad_v, &grad_v_scale);
    Answer { out, grad_lhs, grad_rhs, out_scale, grad_lhs_scale, grad_rhs_scale }
}

/// Whether two indices belong to one vector: they agree outside the contracted axes.
fn same_vector(a: &[usize], b: &[usize], axes: &[usize]) -> bool {
    (0..a.len()).all(|axis| axes.contains(&axis) || a[axis] == b[axis])
}

/// For every entry the divisor of its vector: max(‖x‖, floor), or 1 without a floor.
fn norms(x: &Array, axes: &[usize], floor: Option<f64>) -> Array {
    let all = indices(&x.shape);
    Array::from_fn(&x.shape, |index| {
        let Some(floor) = floor else { return 1.0 };
        let vector = all.iter().filter(|other| same_vector(index, other, axes)).map(|other| x.data[x.offset(other)]);
        // hypot neither overflows nor underflows.
        vector.fold(0.0, f64::hypot).max(floor)
    })
}

/// g/floor below the floor, (g − u (u·g)) / ‖x‖ above it; and the scale of each.
fn through_norm(
    x: &Array,
    axes: &[usize],
    floor: Option<f64>,
    norm: &Array,
    u: &Array,
    grad: &Array,
    scale: &Array,
) -> (Array, Array) {
    let all = indices(&x.shape);
    let projected = |g: &Array, sign: f64| {
        Array::from_fn(&x.shape, |index| {
            let i = x.offset(index);
            if floor.is_none_or(|floor| norm.data[i] == floor) {
                return g.data[i] / norm.data[i];
            }
            let vector = all.iter().filter(|other| same_vector(index, other, axes)).map(|other| x.offset(other));
            let terms = vector.map(|j| u.data[j] * g.data[j]).map(|t| if sign > 0.0 { t.abs() } else { t });
            let dot: f64 = terms.sum();
            let along = u.data[i] * dot;
            (g.data[i] + if sign > 0.0 { along.abs() } else { -along }) / norm.data[i]
        })
    };
    (projected(grad, -1.0), projected(scale, 1.0))
}
