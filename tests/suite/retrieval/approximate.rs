//! Embeddings in an approximate index, as the README of `burn-retrieval` shows it.

use burn::prelude::*;
use burn::tensor::Distribution;
use burn_retrieval::{Catalogue, Hits, Similarity, metrics};

use crate::device::{device, turn_to_draw};

// From here to the next such line as in the README.
use hnsw_rs::prelude::*;

/// An approximate index of items, `(N, n)`, by cosine.
fn approximate(items: Tensor<2>) -> Hnsw<'static, f32, DistCosine> {
    let [count, columns] = items.dims();
    let items: Vec<f32> = items.into_data().iter::<f32>().collect();
    // 16 links for each item, at most 16 layers; 200 candidates are weighed for each link.
    let index = Hnsw::new(16, count, 16, 200, DistCosine {});
    index.parallel_insert_slice(&items.chunks_exact(columns).zip(0..).collect());
    index
}

/// The rows of the `k` items nearest to each query, of 128 candidates.
fn nearest(index: &Hnsw<'static, f32, DistCosine>, queries: Tensor<2>, k: usize) -> Vec<Vec<usize>> {
    let columns = queries.dims()[1];
    let queries: Vec<f32> = queries.into_data().iter::<f32>().collect();
    let rows = |query| index.search(query, k, 128).iter().map(|neighbour| neighbour.d_id).collect();
    queries.chunks_exact(columns).map(rows).collect()
}
// To here.

#[test]
fn the_readme_shows_what_is_tested_here() {
    let source = include_str!("approximate.rs");
    let shown = source.split("// From here to the next such line as in the README.\n").nth(1).expect("the beginning");
    let shown = shown.split("// To here.").next().expect("the end");
    assert!(shown.contains("fn nearest"));
    assert!(
        include_str!("../../../crates/burn-retrieval/README.md").contains(shown),
        "the README has other lines than:\n{shown}"
    );
}

/// Items in clusters, as embeddings are, and queries near some of them.
fn embeddings() -> [Tensor<2>; 2] {
    let _turn = turn_to_draw();
    let device = device();
    device.seed(5);
    let draw = |rows, spread| Tensor::<2>::random([rows, 32], Distribution::Normal(0.0, spread), &device);
    let items = draw(40, 1.0).repeat_dim(0, 100) + draw(4000, 0.5);
    let queries = items.clone().slice(0..200) + draw(200, 0.3);
    [items, queries]
}

#[test]
fn an_approximate_index_finds_most_of_the_exact_best() {
    let [items, queries] = embeddings();
    let exact = Catalogue::new(items.clone(), Similarity::Cosine).top_k(queries.clone(), 10);
    let best: Vec<i64> = exact.indices.clone().into_data().iter::<i64>().collect();
    let best: Vec<Vec<usize>> = best.chunks(10).map(|row| row.iter().map(|&item| item as usize).collect()).collect();

    let found = nearest(&approximate(items), queries, 10);
    assert!(found.iter().all(|row| row.len() == 10), "hnsw_rs gives ten for each");
    let rows: Vec<i64> = found.concat().into_iter().map(|item| item as i64).collect();
    let indices = Tensor::<2, Int>::from_data(TensorData::new(rows, [200, 10]), &device());
    let hits = Hits { scores: exact.scores.zeros_like(), indices };
    let recall = metrics::recall(&hits, &metrics::Relevance::sets(&best), 10);
    println!("recall@10 of hnsw_rs: {recall}");
    assert!(recall >= 0.98, "{recall} of the ten exact best were found");
}
