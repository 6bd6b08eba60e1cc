//! The answer by plain loops in f64, from the definition. It uses neither Burn nor the code under test.
//!
//! Every sum is compensated, so that it can judge f64 over a million terms.

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
        let mut index = vec![0; shape.len()];
        let next = |index: &mut Vec<usize>| {
            for (at, &size) in index.iter_mut().zip(shape).rev() {
                *at += 1;
                if *at < size {
                    return;
                }
                *at = 0;
            }
        };
        let element = |_| {
            let x = value(&index);
            next(&mut index);
            x
        };
        Array::new(shape, (0..shape.iter().product()).map(element).collect())
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
    /// Epsilon, where normalized.
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
    /// Σ|g| / max(‖x‖, floor), for each element of an input: what its gradient would be were all units 1.
    pub lhs_reach: Array,
    pub rhs_reach: Array,
    /// Of all vectors of both inputs, where normalized.
    pub norms: Vec<f64>,
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
    let shape = output_shape(product, &lhs.shape, &rhs.shape);
    let cotangent = cotangent(&shape);
    let (left, right) = vectors(product, &lhs.shape, &rhs.shape);
    let (u, v) = (Units::new(left, lhs, product.floor), Units::new(right, rhs, product.floor));
    let mut out = Vec::with_capacity(cotangent.data.len());
    let (mut grad_u, mut grad_v) = (vec![Sum::default(); lhs.data.len()], vec![Sum::default(); rhs.data.len()]);
    let (mut arrived_u, mut arrived_v) = (vec![0.0; u.divisors.len()], vec![0.0; v.divisors.len()]);
    for (i, j) in meetings(product, &lhs.shape, &rhs.shape, u.vectors.free, v.vectors.free) {
        let g = cotangent.data[out.len()];
        out.push(dot(u.row(i), v.row(j)));
        arrived_u[i] += g.abs();
        arrived_v[j] += g.abs();
        add_scaled(&mut grad_u[u.range(i)], g, v.row(j));
        add_scaled(&mut grad_v[v.range(j)], g, u.row(i));
    }
    let [grad_lhs, grad_lhs_scale, lhs_reach] = u.through_norm(&lhs.shape, &grad_u, &arrived_u);
    let [grad_rhs, grad_rhs_scale, rhs_reach] = v.through_norm(&rhs.shape, &grad_v, &arrived_v);
    Answer {
        out: Array::new(&shape, out.iter().map(Sum::value).collect()),
        out_scale: Array::new(&shape, out.iter().map(|sum| sum.size).collect()),
        grad_lhs,
        grad_rhs,
        grad_lhs_scale,
        grad_rhs_scale,
        lhs_reach,
        rhs_reach,
        norms: [u.norms, v.norms].concat(),
    }
}

/// The plain product of integers, modulo 2⁶⁴. The numbers are whole.
pub fn integers(product: &Product, lhs: &Array, rhs: &Array) -> Vec<i64> {
    let (left, right) = vectors(product, &lhs.shape, &rhs.shape);
    let element =
        |x: &Array, vectors: &Vectors, row: usize, place: usize| x.data[vectors.starts[row] + vectors.places[place]] as i64;
    let sum = |(i, j)| {
        (0..left.places.len()).fold(0i64, |sum, place| {
            sum.wrapping_add(element(lhs, &left, i, place).wrapping_mul(element(rhs, &right, j, place)))
        })
    };
    meetings(product, &lhs.shape, &rhs.shape, left.free, right.free).into_iter().map(sum).collect()
}

/// One input as vectors to contract, ordered by batch index, then by free index.
struct Vectors {
    /// Where each vector begins.
    starts: Vec<usize>,
    /// Where the elements of a vector lie, from its beginning, in the order of the pairs.
    places: Vec<usize>,
    /// Vectors of one batch index.
    free: usize,
}

fn vectors(product: &Product, lhs: &[usize], rhs: &[usize]) -> (Vectors, Vectors) {
    let (left, right): (Vec<usize>, Vec<usize>) = product.pairs.iter().copied().unzip();
    (Vectors::new(lhs, product.batch_dims, &left), Vectors::new(rhs, product.batch_dims, &right))
}

impl Vectors {
    fn new(shape: &[usize], batch_dims: usize, contracted: &[usize]) -> Self {
        let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        let places = |axes: &[usize]| {
            // The other axes of what is empty may be too large to be gone through.
            if axes.iter().any(|&axis| shape[axis] == 0) {
                return Vec::new();
            }
            axes.iter().fold(vec![0], |places, &axis| {
                places.iter().flat_map(|place| (0..shape[axis]).map(move |i| place + i * stride(axis))).collect()
            })
        };
        let (batch, rest): (Vec<usize>, Vec<usize>) = (0..shape.len()).partition(|&axis| axis < batch_dims);
        let free: Vec<usize> = rest.into_iter().filter(|axis| !contracted.contains(axis)).collect();
        Vectors {
            starts: places(&[batch, free.clone()].concat()),
            places: places(contracted),
            free: free.iter().map(|&axis| shape[axis]).product(),
        }
    }
}

/// The vectors of lhs and rhs that meet, for each element of the output in row-major order. A batch of 1 meets every batch.
fn meetings(product: &Product, lhs: &[usize], rhs: &[usize], m: usize, n: usize) -> Vec<(usize, usize)> {
    let batches = lhs.iter().zip(rhs).take(product.batch_dims).fold(vec![(0, 0)], |batches, (&l, &r)| {
        let count = if l == 1 { r } else { l };
        let own = |batch: usize, size: usize, i: usize| batch * size + if size == 1 { 0 } else { i };
        batches.iter().flat_map(|&(bl, br)| (0..count).map(move |i| (own(bl, l, i), own(br, r, i)))).collect()
    });
    let pairs = |(bl, br): (usize, usize)| (0..m).flat_map(move |i| (0..n).map(move |j| (bl * m + i, br * n + j)));
    batches.into_iter().flat_map(pairs).collect()
}

/// The vectors of an input, each divided by max(‖x‖, floor), or as they are without a floor.
struct Units {
    vectors: Vectors,
    /// Vector after vector.
    unit: Vec<f64>,
    /// Of each vector what it was divided by, and whether that is its own norm.
    divisors: Vec<(f64, bool)>,
    /// None without a floor.
    norms: Vec<f64>,
}

impl Units {
    fn new(vectors: Vectors, x: &Array, floor: Option<f64>) -> Self {
        let (mut unit, mut divisors) = (Vec::with_capacity(x.data.len()), Vec::with_capacity(vectors.starts.len()));
        let mut norms = Vec::new();
        for start in &vectors.starts {
            let vector = || vectors.places.iter().map(|place| x.data[start + place]);
            let divisor = floor.map_or((1.0, false), |floor| {
                let norm = norm(vector());
                norms.push(norm);
                if norm < floor { (floor, false) } else { (norm, true) }
            });
            unit.extend(vector().map(|x| x / divisor.0));
            divisors.push(divisor);
        }
        Units { vectors, unit, divisors, norms }
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let k = self.vectors.places.len();
        row * k..(row + 1) * k
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.unit[self.range(row)]
    }

    /// g/floor below the floor, (g − u (u·g)) / ‖x‖ above it; its scale, and its reach, where so much arrived at each vector.
    fn through_norm(&self, shape: &[usize], grad: &[Sum], arrived: &[f64]) -> [Array; 3] {
        let zeros = || Array::new(shape, vec![0.0; shape.iter().product()]);
        let [mut given, mut scale, mut reach] = [zeros(), zeros(), zeros()];
        for (row, (start, &(divisor, projected))) in self.vectors.starts.iter().zip(&self.divisors).enumerate() {
            let (unit, grad) = (self.row(row), &grad[self.range(row)]);
            let mut along = Sum::default();
            if projected {
                unit.iter().zip(grad).for_each(|(u, g)| along.add(u * g.value(), (u * g.size).abs()));
            }
            for ((place, u), g) in self.vectors.places.iter().zip(unit).zip(grad) {
                let part = if projected { (u * along.value(), (u * along.size).abs()) } else { (0.0, 0.0) };
                given.data[start + place] = (g.value() - part.0) / divisor;
                scale.data[start + place] = (g.size + part.1) / divisor;
                reach.data[start + place] = arrived[row] / divisor;
            }
        }
        [given, scale, reach]
    }
}

/// The norm of a vector, which neither overflows nor underflows. Not a number where an element is not finite.
fn norm(vector: impl Iterator<Item = f64> + Clone) -> f64 {
    if !vector.clone().all(f64::is_finite) {
        return f64::NAN;
    }
    let largest = vector.clone().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    let mut squares = Sum::default();
    vector.for_each(|x| squares.add((x / largest) * (x / largest), 0.0));
    largest * squares.value().sqrt()
}

/// A compensated sum (Neumaier), and the sum of the absolute values of its terms.
#[derive(Clone, Copy, Default)]
struct Sum {
    sum: f64,
    lost: f64,
    size: f64,
}

impl Sum {
    fn add(&mut self, term: f64, size: f64) {
        let sum = self.sum + term;
        let added = sum - self.sum;
        self.lost += (self.sum - (sum - added)) + (term - added);
        self.sum = sum;
        self.size += size;
    }

    fn value(&self) -> f64 {
        // Infinite and undefined sums lose nothing.
        if self.sum.is_finite() { self.sum + self.lost } else { self.sum }
    }
}

fn dot(x: &[f64], y: &[f64]) -> Sum {
    // Lanes that do not wait for each other.
    let mut lanes = [Sum::default(); 4];
    let (xs, ys) = (x.chunks_exact(4), y.chunks_exact(4));
    let rest = xs.remainder().iter().zip(ys.remainder());
    for (x, y) in xs.zip(ys) {
        for lane in 0..4 {
            let term = x[lane] * y[lane];
            lanes[lane].add(term, term.abs());
        }
    }
    for (x, y) in rest {
        lanes[0].add(x * y, (x * y).abs());
    }
    lanes.into_iter().fold(Sum::default(), |mut total, lane| {
        total.add(lane.sum, lane.size);
        total.lost += lane.lost;
        total
    })
}

fn add_scaled(sums: &mut [Sum], g: f64, x: &[f64]) {
    for (sum, x) in sums.iter_mut().zip(x) {
        let term = g * x;
        sum.add(term, term.abs());
    }
}
