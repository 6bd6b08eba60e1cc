//! The k best items, against every score and a sort.

use burn::prelude::*;
use burn::tensor::{DType, Distribution};
use burn_retrieval::{Catalogue, Hits, Similarity};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::reference::{self, Row};
use crate::device::{device, float_dtypes, is_ieee, turn_to_draw};

const CASES: u64 = 10_000;

/// The search of a seed. Scores are exact in every dtype, so that ties are ties.
#[derive(Debug)]
struct Case {
    queries: Vec<Vec<f64>>,
    items: Vec<Vec<f64>>,
    similarity: Similarity,
    k: usize,
    exclusions: Option<Vec<Vec<usize>>>,
    excluded_items: Vec<usize>,
    chunk: Option<usize>,
    dtype: DType,
    on_device: bool,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let similarity = if rng.random_bool(0.5) { Similarity::Dot } else { Similarity::Cosine };
        let large = seed.is_multiple_of(100);
        let (most_queries, most_items) = if large { (40, 3000) } else { (5, 60) };
        let (queries, items) = (rng.random_range(0..=most_queries), rng.random_range(0..=most_items));
        let columns = if similarity == Similarity::Cosine { 4 } else { rng.random_range(0..=5) };
        let odd = is_ieee() && rng.random_bool(0.3);
        let mut vectors = |count: usize| (0..count).map(|_| vector(&mut rng, similarity, columns, odd)).collect::<Vec<_>>();
        let (queries, mut items) = (vectors(queries), vectors(items));
        for _ in 0..items.len() / 4 {
            let (from, to) = (rng.random_range(0..items.len()), rng.random_range(0..items.len()));
            items[to] = items[from].clone();
        }
        let list = |rng: &mut StdRng, most: usize| {
            let length = if items.is_empty() { 0 } else { rng.random_range(0..=most) };
            (0..length).map(|_| rng.random_range(0..items.len())).collect::<Vec<usize>>()
        };
        let exclusions = rng.random_bool(0.4).then(|| queries.iter().map(|_| list(&mut rng, 8)).collect());
        let excluded_items = if rng.random_bool(0.2) { list(&mut rng, 5) } else { vec![] };
        let dtypes = float_dtypes();
        Case {
            k: if rng.random_bool(0.8) { rng.random_range(0..=8) } else { rng.random_range(0..=items.len() + 2) },
            chunk: rng.random_bool(0.7).then(|| rng.random_range(1..=items.len() + 1)),
            dtype: dtypes[rng.random_range(0..dtypes.len())],
            on_device: rng.random_bool(0.3),
            queries,
            items,
            similarity,
            exclusions,
            excluded_items,
        }
    }

    fn excludes(&self, query: usize, item: usize) -> bool {
        self.excluded_items.contains(&item) || self.exclusions.as_ref().is_some_and(|lists| lists[query].contains(&item))
    }

    fn given(&self) -> Vec<Row> {
        let columns = self.queries.iter().chain(&self.items).map(Vec::len).next().unwrap_or(0);
        let matrix = |rows: &[Vec<f64>]| {
            let data = TensorData::new(rows.concat(), [rows.len(), columns]);
            Tensor::<2>::from_data(data, (&device(), self.dtype))
        };
        let catalogue = Catalogue::new(matrix(&self.items), self.similarity);
        let mut search = catalogue.search(self.k).with_excluded_items(&self.excluded_items);
        if let Some(lists) = &self.exclusions {
            search = search.with_exclusions(lists);
        }
        if let Some(chunk) = self.chunk {
            search = search.with_chunk(chunk);
        }
        if self.on_device {
            search = search.with_selection_on_device();
        }
        rows(search.run(matrix(&self.queries)))
    }

    fn expected(&self) -> Vec<Row> {
        let cosine = self.similarity == Similarity::Cosine;
        reference::top_k(&self.queries, &self.items, cosine, self.k, |query, item| self.excludes(query, item))
    }
}

/// Small integers, whose products have exact sums; or vectors along an axis or the diagonal of four dimensions, whose norms are powers of two.
fn vector(rng: &mut StdRng, similarity: Similarity, columns: usize, odd: bool) -> Vec<f64> {
    let mut vector: Vec<f64> = match similarity {
        Similarity::Dot => (0..columns).map(|_| f64::from(rng.random_range(-2..=2))).collect(),
        Similarity::Cosine => {
            let length = 2f64.powi(rng.random_range(-3..=3));
            let axis = rng.random_range(0..=columns);
            let entry =
                |i| if axis == columns || i == axis { length * if rng.random_bool(0.5) { 1.0 } else { -1.0 } } else { 0.0 };
            (0..columns).map(entry).collect()
        }
    };
    if odd && columns > 0 && rng.random_bool(0.15) {
        match [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0][rng.random_range(0..4)] {
            0.0 => vector.fill(0.0),
            odd => vector[rng.random_range(0..columns)] = odd,
        }
    }
    vector
}

pub fn rows(hits: Hits) -> Vec<Row> {
    let ([queries, k], scores, indices) = (hits.scores.dims(), hits.scores.into_data(), hits.indices.into_data());
    assert_eq!(indices.shape().as_slice(), [queries, k]);
    let hits: Row = scores.iter::<f64>().zip(indices.iter::<i64>()).collect();
    if k == 0 { vec![vec![]; queries] } else { hits.chunks(k).map(<[_]>::to_vec).collect() }
}

fn same(a: &[Row], b: &[Row]) -> bool {
    let same_hit = |a: &(f64, i64), b: &(f64, i64)| a.1 == b.1 && (a.0 == b.0 || a.0.is_nan() && b.0.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_hit(a, b)))
}

#[test]
fn random_searches_give_what_a_sort_gives() {
    let cases = if is_ieee() { CASES } else { CASES / 100 };
    println!("{cases} searches");
    for seed in 0..cases {
        let case = Case::new(seed);
        let (given, expected) = (case.given(), case.expected());
        assert!(same(&given, &expected), "seed {seed}: {given:?}, not {expected:?}, of {case:?}");
    }
}

/// Of numbers that round: scores are right, and no item left out is better than one that was found by more than rounding.
fn assert_exact(queries: Tensor<2>, items: Tensor<2>, similarity: Similarity, k: usize, tolerance: f64) {
    let matrix = |x: &Tensor<2>| {
        let columns = x.dims()[1];
        x.to_data().iter::<f64>().collect::<Vec<_>>().chunks(columns).map(<[f64]>::to_vec).collect::<Vec<_>>()
    };
    let (q, x) = (matrix(&queries), matrix(&items));
    let given = rows(Catalogue::new(items, similarity).top_k(queries, k));
    let expected = reference::top_k(&q, &x, similarity == Similarity::Cosine, k, |_, _| false);
    for (query, (given, expected)) in given.iter().zip(&expected).enumerate() {
        for (rank, (&(score, item), &(best, _))) in given.iter().zip(expected).enumerate() {
            let exact = reference::score(&q[query], &x[item as usize], similarity == Similarity::Cosine);
            assert!(
                (score - exact).abs() <= tolerance,
                "query {query} rank {rank}: {score} for item {item}, which has {exact}"
            );
            assert!(
                exact >= best - 2.0 * tolerance,
                "query {query} rank {rank}: item {item} has {exact}, the reference {best}"
            );
        }
        let mut items: Vec<i64> = given.iter().map(|hit| hit.1).collect();
        items.sort_unstable();
        items.dedup();
        assert_eq!(items.len(), given.len(), "query {query}: an item came twice");
    }
}

#[test]
fn random_vectors_of_every_dtype_give_their_best_items() {
    let _turn = turn_to_draw();
    let device = device();
    device.seed(7);
    println!("seed 7");
    for dtype in float_dtypes() {
        for similarity in [Similarity::Dot, Similarity::Cosine] {
            for (queries, items, columns, k) in [(1, 5000, 33, 10), (70, 1500, 16, 100), (1030, 300, 8, 5)] {
                let draw = |rows| Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), (&device, dtype));
                let tolerance = if dtype == DType::F64 { 1e-12 } else { 1e-4 };
                assert_exact(draw(queries), draw(items), similarity, k, tolerance);
            }
        }
    }
}

#[test]
fn norms_far_from_one_neither_overflow_nor_underflow() {
    if !is_ieee() {
        return;
    }
    let device = device();
    for scale in [1e-30f32, 1.0, 1e20, 3e37] {
        let items = Tensor::<2>::from_data([[0.0, 1.0], [3.0, 4.0], [1.0, 0.0]], &device) * scale;
        let hits = Catalogue::new(items, Similarity::Cosine).top_k(Tensor::from_data([[3.0, 4.0]], &device), 3);
        let [row] = &rows(hits)[..] else { panic!("one query") };
        let expected: [f64; 3] = if scale < 1e-6 { [5e-24, 8e-25, 6e-25] } else { [1.0, 0.8, 0.6] };
        assert_eq!(row.iter().map(|hit| hit.1).collect::<Vec<_>>(), [1, 0, 2], "scale {scale:e}");
        for (hit, expected) in row.iter().zip(expected) {
            assert!((hit.0 - expected).abs() <= 1e-6 * expected, "scale {scale:e}: {} for {expected}", hit.0);
        }
    }
}

#[test]
fn views_give_what_contiguous_vectors_give() {
    let _turn = turn_to_draw();
    let device = device();
    device.seed(3);
    let items = Tensor::<2>::random([200, 12], Distribution::Normal(0.0, 1.0), &device);
    let queries = Tensor::<2>::random([9, 12], Distribution::Normal(0.0, 1.0), &device);
    let padded = Tensor::cat(vec![queries.clone(), queries.clone()], 1).narrow(1, 0, 12);
    let transposed = Tensor::<2>::from_data(items.clone().transpose().to_data(), &device).transpose();
    for similarity in [Similarity::Dot, Similarity::Cosine] {
        let plain = rows(Catalogue::new(items.clone(), similarity).top_k(queries.clone(), 7));
        let views = rows(Catalogue::new(transposed.clone(), similarity).top_k(padded.clone(), 7));
        let items = |rows: &[Row]| rows.concat().iter().map(|hit| hit.1).collect::<Vec<_>>();
        assert_eq!(items(&views), items(&plain), "{similarity:?}");
    }
}

#[test]
fn tensors_with_autodiff_are_detached() {
    let device = device().autodiff();
    let items = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0]], &device).require_grad();
    let hits = Catalogue::new(items.clone(), Similarity::Dot).top_k(items, 1);
    assert!(!hits.scores.is_autodiff() && !hits.indices.device().is_autodiff());
    assert_eq!(rows(hits), [[(1.0, 0)], [(1.0, 1)]]);
}
