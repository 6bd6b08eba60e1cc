//! What is checked: the inputs of a function or the parameters of a module, and the outputs. The rest of the crate sees numbers.

use burn_core::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn_core::tensor::{Bool, DType, Device, Float, Gradients, Int, Tensor, TensorData, kind::Basic};

/// A float input or parameter.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub values: Vec<f64>,
}

/// A gradient as Burn gave it.
#[derive(Clone, Debug)]
pub struct Gradient {
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub values: Vec<f64>,
}

/// Where the leaves are to be made, and of what dtype.
#[derive(Clone, Debug)]
pub struct Build<'a> {
    pub device: &'a Device,
    pub dtype: DType,
}

/// The numbers of one leaf, and how it is made of them.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    pub values: &'a [f64],
    pub layout: Layout,
    /// Whether its gradient is recorded.
    pub tracked: bool,
}

/// How the numbers of a leaf lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    Contiguous,
    /// With the axes in reverse order, or backwards where there is only one.
    Permuted,
    /// As a window of a larger tensor.
    Sliced,
    /// Once along an axis, along which they are the same.
    Expanded(usize),
}

/// Something with float leaves that can be made anew from other numbers.
pub(crate) trait Subject {
    /// What the function under test takes.
    type Argument;
    fn leaves(&self) -> Vec<Leaf>;
    fn build(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> Self::Argument;
    fn gradients(&self, argument: &Self::Argument, gradients: &Gradients) -> Vec<Option<Gradient>>;
}

fn leaf<const D: usize>(name: String, tensor: &Tensor<D>) -> Leaf {
    Leaf { name, shape: tensor.dims().to_vec(), dtype: tensor.dtype(), values: numbers(tensor) }
}

pub(crate) fn numbers<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

fn tensor<const D: usize>(leaf: Made, shape: [usize; D], build: &Build) -> Tensor<D> {
    let make = |values: Vec<f64>, shape: [usize; D]| {
        Tensor::<D>::from_data(TensorData::new(values, shape), (build.device, build.dtype))
    };
    let plain = make(leaf.values.to_vec(), shape);
    let tensor = match leaf.layout {
        Layout::Contiguous => plain,
        _ if leaf.values.is_empty() => plain,
        Layout::Permuted => {
            let turned = |x: Tensor<D>| {
                if D == 1 {
                    x.flip([0])
                } else {
                    x.permute(core::array::from_fn::<isize, D, _>(|axis| (D - 1 - axis) as isize))
                }
            };
            // Stored the other way round, then viewed the right way round.
            let stored = turned(plain);
            turned(make(numbers(&stored), stored.dims()))
        }
        Layout::Sliced => {
            let mut edge = shape;
            edge[D - 1] = 1;
            let edge = make(vec![7.0; edge.iter().product()], edge);
            Tensor::cat(vec![edge.clone(), plain, edge], D - 1).narrow(D - 1, 1, shape[D - 1])
        }
        Layout::Expanded(axis) => {
            let once = plain.narrow(axis, 0, 1);
            make(numbers(&once), once.dims()).expand(shape)
        }
    };
    tensor.set_require_grad(leaf.tracked)
}

fn gradient<const D: usize>(tensor: &Tensor<D>, gradients: &Gradients) -> Option<Gradient> {
    let grad = tensor.grad(gradients)?;
    Some(Gradient { shape: grad.shape().to_vec(), dtype: grad.dtype(), values: numbers(&grad) })
}

/// One input of a function under test: a float tensor, which is checked, or an integer or boolean one, which passes through.
pub trait Input: Clone {
    #[doc(hidden)]
    fn leaf(&self, name: String) -> Option<Leaf>;
    #[doc(hidden)]
    fn rebuild(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> Self;
    #[doc(hidden)]
    fn negated(&self) -> Self;
    #[doc(hidden)]
    fn gradient(&self, gradients: &Gradients) -> Option<Option<Gradient>>;
}

impl<const D: usize> Input for Tensor<D, Float> {
    fn leaf(&self, name: String) -> Option<Leaf> {
        Some(leaf(name, self))
    }
    fn rebuild(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> Self {
        tensor(leaves.next().expect("numbers for every leaf"), self.dims(), build)
    }
    fn negated(&self) -> Self {
        self.clone().neg()
    }
    fn gradient(&self, gradients: &Gradients) -> Option<Option<Gradient>> {
        Some(gradient(self, gradients))
    }
}

macro_rules! passes_through {
    ($kind:ty) => {
        impl<const D: usize> Input for Tensor<D, $kind> {
            fn leaf(&self, _: String) -> Option<Leaf> {
                None
            }
            fn rebuild(&self, _: &mut dyn Iterator<Item = Made>, build: &Build) -> Self {
                self.clone().to_device(build.device)
            }
            fn negated(&self) -> Self {
                self.clone()
            }
            fn gradient(&self, _: &Gradients) -> Option<Option<Gradient>> {
                None
            }
        }
    };
}
passes_through!(Int);
passes_through!(Bool);

/// The inputs of a function under test: a tensor, or a tuple of one to eight tensors of any ranks and kinds.
pub trait Inputs: Clone {
    #[doc(hidden)]
    fn leaves(&self) -> Vec<Leaf>;
    #[doc(hidden)]
    fn remake(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> Self;
    #[doc(hidden)]
    fn all_negated(&self) -> Self;
    #[doc(hidden)]
    fn gradients(&self, gradients: &Gradients) -> Vec<Option<Gradient>>;
}

impl<T: Input> Inputs for T {
    fn leaves(&self) -> Vec<Leaf> {
        self.leaf("input 0".into()).into_iter().collect()
    }
    fn remake(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> Self {
        self.rebuild(leaves, build)
    }
    fn all_negated(&self) -> Self {
        self.negated()
    }
    fn gradients(&self, gradients: &Gradients) -> Vec<Option<Gradient>> {
        self.gradient(gradients).into_iter().collect()
    }
}

macro_rules! tuples {
    ($($name:ident $index:tt),+) => {
        impl<$($name: Input),+> Inputs for ($($name,)+) {
            fn leaves(&self) -> Vec<Leaf> {
                [$(self.$index.leaf(format!("input {}", $index)),)+].into_iter().flatten().collect()
            }
            fn remake(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> Self {
                ($(self.$index.rebuild(leaves, build),)+)
            }
            fn all_negated(&self) -> Self {
                ($(self.$index.negated(),)+)
            }
            fn gradients(&self, gradients: &Gradients) -> Vec<Option<Gradient>> {
                [$(self.$index.gradient(gradients),)+].into_iter().flatten().collect()
            }
        }
        impl<$($name: Outputs),+> Outputs for ($($name,)+) {
            fn each(self, visit: &mut dyn FnMut(Output)) {
                $(self.$index.each(visit);)+
            }
        }
    };
}
tuples!(A 0);
tuples!(A 0, B 1);
tuples!(A 0, B 1, C 2);
tuples!(A 0, B 1, C 2, D 3);
tuples!(A 0, B 1, C 2, D 3, E 4);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuples!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

/// The inputs of a function as a subject.
pub(crate) struct Arguments<I>(pub I);

impl<I: Inputs> Subject for Arguments<I> {
    type Argument = I;

    fn leaves(&self) -> Vec<Leaf> {
        self.0.leaves()
    }
    fn build(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> I {
        self.0.remake(leaves, build)
    }
    fn gradients(&self, argument: &I, gradients: &Gradients) -> Vec<Option<Gradient>> {
        argument.gradients(gradients)
    }
}

/// The inputs of a function as results of an operation, which gradient checkpointing forgets and computes anew: leaves of the opposite
/// sign, negated.
pub(crate) struct Computed<I>(pub I);

impl<I: Inputs> Subject for Computed<I> {
    /// The leaves, and the inputs that are computed from them.
    type Argument = (I, I);

    fn leaves(&self) -> Vec<Leaf> {
        self.0.leaves()
    }
    fn build(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> (I, I) {
        let opposite: Vec<(Vec<f64>, Made)> = leaves.map(|leaf| (leaf.values.iter().map(|x| -x).collect(), leaf)).collect();
        let leaves = self.0.remake(&mut opposite.iter().map(|(values, leaf)| Made { values, ..*leaf }), build);
        let inputs = leaves.all_negated();
        (leaves, inputs)
    }
    fn gradients(&self, (leaves, _): &(I, I), gradients: &Gradients) -> Vec<Option<Gradient>> {
        let opposite = |gradient: Gradient| Gradient { values: gradient.values.iter().map(|g| -g).collect(), ..gradient };
        leaves.gradients(gradients).into_iter().map(|gradient| gradient.map(opposite)).collect()
    }
}

/// Two subjects, the leaves of one after those of the other: a module and its inputs.
pub(crate) struct Both<A, B>(pub A, pub B);

impl<A: Subject, B: Subject> Subject for Both<A, B> {
    type Argument = (A::Argument, B::Argument);

    fn leaves(&self) -> Vec<Leaf> {
        [self.0.leaves(), self.1.leaves()].concat()
    }
    fn build(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> Self::Argument {
        (self.0.build(leaves, build), self.1.build(leaves, build))
    }
    fn gradients(&self, argument: &Self::Argument, gradients: &Gradients) -> Vec<Option<Gradient>> {
        [self.0.gradients(&argument.0, gradients), self.1.gradients(&argument.1, gradients)].concat()
    }
}

/// The trainable float parameters of a module as a subject. Frozen ones keep their numbers.
pub(crate) struct Parameters<M> {
    module: M,
    /// Whether each float parameter is a leaf, in the order of the visit.
    trained: Vec<bool>,
    /// How many could be trained but are frozen.
    pub frozen: usize,
}

impl<M: Module> Parameters<M> {
    pub(crate) fn new(module: M, device: &Device) -> Self
    where
        M: Clone,
    {
        let trained = |module: &M| {
            let mut visitor = Trained(Vec::new());
            module.visit(&mut visitor);
            visitor.0
        };
        let mut found = trained(&module);
        let module = module.to_device(device);
        // A module off autodiff, or in validation mode, trains nothing; what could be trained is checked all the same, in that
        // mode. Buffers, such as running means, refuse to require gradients.
        let trainable = trained(&module.clone().map(&mut Track));
        if !found.contains(&true) {
            found.clone_from(&trainable);
        }
        let frozen = found.iter().zip(&trainable).filter(|(found, trainable)| **trainable && !**found).count();
        Parameters { module, trained: found, frozen }
    }
}

/// Asks every float parameter for gradients.
struct Track;

impl ModuleMapper for Track {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.autodiff().detach().require_grad())
    }
}

impl<M: Module> Subject for Parameters<M> {
    type Argument = M;

    fn leaves(&self) -> Vec<Leaf> {
        let mut visitor = Collect { path: Vec::new(), trained: self.trained.iter(), leaves: Vec::new() };
        self.module.visit(&mut visitor);
        visitor.leaves
    }

    fn build(&self, leaves: &mut dyn Iterator<Item = Made>, build: &Build) -> M {
        // Clones share running means. What the last evaluation left for them to take in, in its own dtype, they take in now, before they
        // are cast to that of the next.
        let _ = self.module.valid();
        self.module.clone().map(&mut Replace { trained: self.trained.iter(), leaves, build })
    }

    fn gradients(&self, argument: &M, gradients: &Gradients) -> Vec<Option<Gradient>> {
        let mut visitor = Read { trained: self.trained.iter(), gradients, found: Vec::new() };
        argument.visit(&mut visitor);
        visitor.found
    }
}

struct Trained(Vec<bool>);

impl ModuleVisitor for Trained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(param.val().is_require_grad());
    }
}

struct Collect<'a> {
    path: Vec<String>,
    trained: core::slice::Iter<'a, bool>,
    leaves: Vec<Leaf>,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.trained.next() == Some(&true) {
            self.leaves.push(leaf(self.path.join("."), &param.val()));
        }
    }
}

struct Replace<'a, 'v> {
    trained: core::slice::Iter<'a, bool>,
    leaves: &'a mut dyn Iterator<Item = Made<'v>>,
    build: &'a Build<'a>,
}

impl ModuleMapper for Replace<'_, '_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.trained.next() == Some(&true) {
            let leaf = self.leaves.next().expect("numbers for every parameter");
            param.map(|value| tensor(leaf, value.dims(), self.build))
        } else {
            param.map(|value| value.cast(self.build.dtype))
        }
    }
}

struct Read<'a> {
    trained: core::slice::Iter<'a, bool>,
    gradients: &'a Gradients,
    found: Vec<Option<Gradient>>,
}

impl ModuleVisitor for Read<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.trained.next() == Some(&true) {
            self.found.push(gradient(&param.val(), self.gradients));
        }
    }
}

/// A float output of the function under test.
#[doc(hidden)]
pub struct Output {
    pub(crate) values: Vec<f64>,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) tracked: bool,
    /// The sum of the output times a cotangent.
    pub(crate) weighted: Weighted,
}

type Weighted = Box<dyn FnOnce(&[f64]) -> Tensor<1>>;

/// The outputs of a function under test: a tensor, a tuple or a `Vec` of them. Integer and boolean outputs have no gradient
/// and are ignored.
pub trait Outputs {
    #[doc(hidden)]
    fn each(self, visit: &mut dyn FnMut(Output));
}

impl<const D: usize> Outputs for Tensor<D, Float> {
    fn each(self, visit: &mut dyn FnMut(Output)) {
        visit(Output {
            values: numbers(&self),
            shape: self.dims().to_vec(),
            dtype: self.dtype(),
            tracked: self.is_tracked(),
            weighted: Box::new(move |cotangent| {
                let data = TensorData::new(cotangent.to_vec(), self.shape());
                let cotangent = Tensor::<D>::from_data(data, (&self.device(), self.dtype()));
                (self * cotangent).sum()
            }),
        });
    }
}

impl<const D: usize> Outputs for Tensor<D, Int> {
    fn each(self, _: &mut dyn FnMut(Output)) {}
}

impl<const D: usize> Outputs for Tensor<D, Bool> {
    fn each(self, _: &mut dyn FnMut(Output)) {}
}

impl<O: Outputs> Outputs for Vec<O> {
    fn each(self, visit: &mut dyn FnMut(Output)) {
        for output in self {
            output.each(visit);
        }
    }
}
