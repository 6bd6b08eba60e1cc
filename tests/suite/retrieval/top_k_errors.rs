//! What is wrong with a search, word by word.

use burn::prelude::*;
use burn::tensor::DType;
use burn_retrieval::{Catalogue, Similarity};

use crate::device::device;

fn matrix(rows: usize, columns: usize) -> Tensor<2> {
    Tensor::ones([rows, columns], (&device(), DType::F32))
}

#[test]
fn every_error_names_what_it_is_about() {
    let catalogue = Catalogue::new(matrix(5, 4), Similarity::Dot);
    let search = || catalogue.search(2);
    let lists = [vec![1], vec![5]];
    let cases = [
        (search().try_run(matrix(1, 3)), "Catalogue: queries have 3 columns but items have 4; queries [1, 3], items [5, 4]"),
        (search().with_chunk(0).try_run(matrix(1, 4)), "Catalogue: a chunk of 0 rows holds nothing; give 1 or more"),
        (
            search().with_exclusions(&lists).try_run(matrix(3, 4)),
            "Catalogue: 2 lists of excluded items for 3 queries; give one list, maybe empty, for each query",
        ),
        (
            search().with_exclusions(&lists).try_run(matrix(2, 4)),
            "Catalogue: item 5 cannot be excluded, as there are 5; they are counted from 0",
        ),
        (
            search().with_excluded_items(&[9]).try_run(matrix(2, 4)),
            "Catalogue: item 9 cannot be excluded, as there are 5; they are counted from 0",
        ),
    ];
    for (result, text) in cases {
        assert_eq!(result.expect_err(text).to_string(), text);
    }
}

#[test]
fn dtypes_that_differ_are_an_error() {
    let other = if device().supports_dtype(DType::F64) { DType::F64 } else { DType::F16 };
    let catalogue = Catalogue::new(matrix(5, 4), Similarity::Cosine);
    let error = catalogue.search(1).try_run(matrix(1, 4).cast(other)).unwrap_err();
    assert_eq!(error.to_string(), format!("Catalogue: queries are {other:?} but items are F32; cast one of them"));
}

#[test]
#[should_panic(expected = "Catalogue: queries have 3 columns but items have 4")]
fn run_panics_with_the_text_of_the_error() {
    Catalogue::new(matrix(5, 4), Similarity::Dot).top_k(matrix(1, 3), 1);
}

#[test]
fn nothing_asked_of_nothing_is_a_short_answer() {
    for similarity in [Similarity::Dot, Similarity::Cosine] {
        for (queries, items, columns, k) in [(0, 3, 2, 2), (3, 0, 2, 2), (3, 3, 2, 0), (0, 0, 0, 0), (2, 3, 0, 9)] {
            let hits = Catalogue::new(matrix(items, columns), similarity).top_k(matrix(queries, columns), k);
            assert_eq!(hits.scores.dims(), [queries, k.min(items)], "{queries} {items} {columns} {k}");
            assert_eq!(hits.indices.dims(), [queries, k.min(items)]);
        }
    }
}
