//! What is checked: the inputs of a function or the parameters of a module, and the outputs. The rest of the crate sees numbers.

use burn_core::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn_core::tensor::{Bool, DType, Device, Float, Gradients, Int, Tensor, TensorData, kind::Basic};

/// A float input or parameter.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub values: Vec<f64>,
}

/// A gradient as Burn gave it.
#[derive(Clone, Debug)]
pub(crate) struct Gradient {
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub values: Vec<f64>,
}

/// How the leaves are to be made.
#[derive(Clone, Debug)]
pub(crate) struct Build<'a> {
    pub device: &'a Device,
    pub dtype: DType,
    /// Whether the numbers lie in memory in another order than the axes say.
    pub strided: bool,
    /// Whether gradients are recorded.
    pub tracked: bool,
}

/// Something with float leaves that can be made anew from other numbers.
pub(crate) trait Subject {
    /// What the function under test takes.
    type Argument;
    fn leaves(&self) -> Vec<Leaf>;
    fn build(&self, values: &[Vec<f64>], build: &Build) -> Self::Argument;
    fn gradients(&self, argument: &Self::Argument, gradients: &Gradients) -> Vec<Option<Gradient>>;
}

fn leaf<const D: usize>(name: String, tensor: &Tensor<D>) -> Leaf {
    Leaf { name, shape: tensor.dims().to_vec(), dtype: tensor.dtype(), values: numbers(tensor) }
}

pub(crate) fn numbers<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

fn tensor<const D: usize>(values: &[f64], shape: [usize; D], build: &Build) -> Tensor<D> {
    let make = |values: Vec<f64>, shape: [usize; D]| {
        Tensor::<D>::from_data(TensorData::new(values, shape), (build.device, build.dtype))
    };
    let tensor = if build.strided && !values.is_empty() {
        // Stored with its axes reversed and its last axis backwards, then viewed the right way round.
        let reversed: [isize; D] = core::array::from_fn(|axis| (D - 1 - axis) as isize);
        let plain = make(values.to_vec(), shape);
        let stored = plain.flip([D - 1]).permute(reversed);
        make(numbers(&stored), stored.dims()).permute(reversed).flip([D - 1])
    } else {
        make(values.to_vec(), shape)
    };
    tensor.set_require_grad(build.tracked)
}

fn gradient<const D: usize>(tensor: &Tensor<D>, gradients: &Gradients) -> Option<Gradient> {
    let grad = tensor.grad(gradients)?;
    Some(Gradient { shape: grad.shape().to_vec(), dtype: grad.dtype(), values: numbers(&grad) })
}

/// One input of a function under test: a float tensor, which is checked, or an integer or boolean one, which passes through.
pub trait Input: Clone {
    #[doc(hidden)]
    fn collect(&self, leaves: &mut Vec<Leaf_>);
    #[doc(hidden)]
    fn rebuild(&self, values: &mut dyn Iterator<Item = &Vec<f64>>, build: &Build_) -> Self;
    #[doc(hidden)]
    fn read(&self, gradients: &Gradients, found: &mut Vec<Option<Gradient_>>);
}

/// Private in all but name: what [`Input`]'s hidden methods speak of.
mod hidden {
    #[doc(hidden)]
    pub struct Leaf_(pub(crate) super::Leaf);
    #[doc(hidden)]
    pub struct Build_<'a>(pub(crate) super::Build<'a>);
    #[doc(hidden)]
    pub struct Gradient_(pub(crate) super::Gradient);
}
use hidden::{Build_, Gradient_, Leaf_};

impl<const D: usize> Input for Tensor<D, Float> {
    fn collect(&self, leaves: &mut Vec<Leaf_>) {
        leaves.push(Leaf_(leaf(String::new(), self)));
    }
    fn rebuild(&self, values: &mut dyn Iterator<Item = &Vec<f64>>, build: &Build_) -> Self {
        tensor(values.next().expect("a value for every leaf"), self.dims(), &build.0)
    }
    fn read(&self, gradients: &Gradients, found: &mut Vec<Option<Gradient_>>) {
        found.push(gradient(self, gradients).map(Gradient_));
    }
}

macro_rules! passes_through {
    ($kind:ty) => {
        impl<const D: usize> Input for Tensor<D, $kind> {
            fn collect(&self, _: &mut Vec<Leaf_>) {}
            fn rebuild(&self, _: &mut dyn Iterator<Item = &Vec<f64>>, build: &Build_) -> Self {
                self.clone().to_device(build.0.device)
            }
            fn read(&self, _: &Gradients, _: &mut Vec<Option<Gradient_>>) {}
        }
    };
}
passes_through!(Int);
passes_through!(Bool);

/// The inputs of a function under test: a tensor, or a tuple of one to eight tensors of any ranks and kinds.
pub trait Inputs: Clone {
    #[doc(hidden)]
    fn each(&self, visit: &mut dyn FnMut(usize, &dyn AnyInput));
    #[doc(hidden)]
    fn remake(&self, values: &mut dyn Iterator<Item = &Vec<f64>>, build: &Build_) -> Self;
}

/// [`Input`] as an object.
#[doc(hidden)]
pub trait AnyInput {
    fn collect(&self, leaves: &mut Vec<Leaf_>);
    fn read(&self, gradients: &Gradients, found: &mut Vec<Option<Gradient_>>);
}

impl<T: Input> AnyInput for T {
    fn collect(&self, leaves: &mut Vec<Leaf_>) {
        Input::collect(self, leaves);
    }
    fn read(&self, gradients: &Gradients, found: &mut Vec<Option<Gradient_>>) {
        Input::read(self, gradients, found);
    }
}

impl<T: Input> Inputs for T {
    fn each(&self, visit: &mut dyn FnMut(usize, &dyn AnyInput)) {
        visit(0, self);
    }
    fn remake(&self, values: &mut dyn Iterator<Item = &Vec<f64>>, build: &Build_) -> Self {
        self.rebuild(values, build)
    }
}

macro_rules! tuples {
    ($($name:ident $index:tt),+) => {
        impl<$($name: Input),+> Inputs for ($($name,)+) {
            fn each(&self, visit: &mut dyn FnMut(usize, &dyn AnyInput)) {
                $(visit($index, &self.$index);)+
            }
            fn remake(&self, values: &mut dyn Iterator<Item = &Vec<f64>>, build: &Build_) -> Self {
                ($(self.$index.rebuild(values, build),)+)
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
        let mut leaves = Vec::new();
        self.0.each(&mut |index, input| {
            let mut found = Vec::new();
            input.collect(&mut found);
            leaves.extend(found.into_iter().map(|leaf| Leaf { name: format!("input {index}"), ..leaf.0 }));
        });
        leaves
    }

    fn build(&self, values: &[Vec<f64>], build: &Build) -> I {
        self.0.remake(&mut values.iter(), &Build_(build.clone()))
    }

    fn gradients(&self, argument: &I, gradients: &Gradients) -> Vec<Option<Gradient>> {
        let mut found = Vec::new();
        argument.each(&mut |_, input| input.read(gradients, &mut found));
        found.into_iter().map(|gradient| gradient.map(|gradient| gradient.0)).collect()
    }
}

/// The trainable float parameters of a module as a subject. Frozen ones keep their numbers.
pub(crate) struct Parameters<M> {
    module: M,
    /// Whether each float parameter is a leaf, in the order of the visit.
    trained: Vec<bool>,
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
        if !found.contains(&true) {
            found = trained(&module.clone().map(&mut Track));
        }
        Parameters { module, trained: found }
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

    fn build(&self, values: &[Vec<f64>], build: &Build) -> M {
        self.module.clone().map(&mut Replace { trained: self.trained.iter(), values: values.iter(), build })
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

struct Replace<'a> {
    trained: core::slice::Iter<'a, bool>,
    values: core::slice::Iter<'a, Vec<f64>>,
    build: &'a Build<'a>,
}

impl ModuleMapper for Replace<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.trained.next() == Some(&true) {
            let values = self.values.next().expect("a value for every parameter");
            param.map(|value| tensor(values, value.dims(), self.build))
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
