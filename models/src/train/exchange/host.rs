//! The exchange in the host's memory: any backend, slow, and the specification of the others.
//!
//! Every rank hands its tensors over as f32 and adds up what all have handed over, in the order of
//! the ranks; so all of them get the same bits.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use burn_hybrid_ops::TrainingEngine;

use super::meeting::{Seat, seats};
use super::{Exchange, RankLost, Word};

/// Tensors as f32, with their shapes.
type Handed = Vec<(Vec<f32>, Vec<usize>)>;

/// One rank's end of an exchange in the host's memory.
#[derive(Debug)]
pub struct Host<D> {
    words: Seat<Word>,
    tensors: Seat<Handed>,
    ranks: usize,
    device: D,
}

/// An exchange between some devices, a rank each.
pub fn between<D>(devices: Vec<D>) -> Vec<Host<D>> {
    let ranks = devices.len();
    let ends = seats(ranks).zip(seats(ranks)).zip(devices);
    ends.map(|((words, tensors), device)| Host {
        words,
        tensors,
        ranks,
        device,
    })
    .collect()
}

impl<B: TrainingEngine> Exchange<B> for Host<B::Device> {
    fn rank(&self) -> usize {
        self.words.rank()
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn gather(&self, word: Word) -> Result<Vec<Word>, RankLost> {
        self.words.gather(word).map(|words| words.to_vec())
    }

    fn sum(
        &self,
        tensors: Vec<FloatTensor<B::InnerBackend>>,
    ) -> Result<Vec<FloatTensor<B::InnerBackend>>, RankLost> {
        let own = tensors.into_iter().map(handed_over::<B::InnerBackend>);
        let all = self.tensors.gather(own.collect())?;
        let own = self.words.rank();
        let sum = |(index, (_, shape)): (usize, &(Vec<f32>, Vec<usize>))| {
            let mut terms = all.iter().map(|handed| handed[index].0.as_slice());
            let mut sum = terms.next().unwrap_or_default().to_vec();
            for term in terms {
                sum.iter_mut()
                    .zip(term)
                    .for_each(|(sum, term)| *sum += term);
            }
            B::InnerBackend::float_from_data(TensorData::new(sum, shape.clone()), &self.device)
        };
        Ok(all[own].iter().enumerate().map(sum).collect())
    }
}

fn handed_over<B: Backend>(tensor: FloatTensor<B>) -> (Vec<f32>, Vec<usize>) {
    // The number of dimensions of the type is not looked at when data is read.
    let tensor = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(tensor));
    let data = tensor.into_data();
    (data.iter::<f32>().collect(), data.shape.as_slice().to_vec())
}
