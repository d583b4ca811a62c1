//! Threads that wait for each other: each says something, all hear everything.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::RankLost;

/// A place at a meeting. Dropping it leaves the meeting, which ends it for all.
#[derive(Debug)]
pub(super) struct Seat<T> {
    meeting: Arc<Meeting<T>>,
    rank: usize,
}

#[derive(Debug)]
struct Meeting<T> {
    round: Mutex<Round<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Round<T> {
    number: u64,
    /// What was said so far, by rank.
    said: Vec<Option<T>>,
    /// What all said in the round before.
    heard: Arc<[T]>,
    /// The first rank that has left.
    left: Option<usize>,
}

/// Seats for some ranks, in their order.
pub(super) fn seats<T>(ranks: usize) -> impl Iterator<Item = Seat<T>> {
    let round = Round {
        number: 0,
        said: (0..ranks).map(|_| None).collect(),
        heard: Arc::new([]),
        left: None,
    };
    let meeting = Arc::new(Meeting {
        round: Mutex::new(round),
        changed: Condvar::new(),
    });
    (0..ranks).map(move |rank| Seat {
        meeting: meeting.clone(),
        rank,
    })
}

impl<T> Seat<T> {
    /// Which rank sits here.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// Says something, waits until every rank has, and returns what all said, by rank.
    ///
    /// # Errors
    /// [`RankLost`] if one has left.
    pub(super) fn gather(&self, word: T) -> Result<Arc<[T]>, RankLost> {
        let mut round = self.lock();
        let number = round.number;
        round.said[self.rank] = Some(word);
        if round.said.iter().all(Option::is_some) {
            round.heard = round.said.iter_mut().filter_map(Option::take).collect();
            round.number += 1;
            self.meeting.changed.notify_all();
        }
        loop {
            // The next round cannot be over before this rank has said something in it.
            if round.number > number {
                return Ok(round.heard.clone());
            }
            if let Some(rank) = round.left {
                return Err(RankLost { rank });
            }
            round = self
                .meeting
                .changed
                .wait(round)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Round<T>> {
        let round = self.meeting.round.lock();
        round.unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Seat<T> {
    fn drop(&mut self) {
        self.lock().left.get_or_insert(self.rank);
        self.meeting.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn all_hear_the_same_in_the_order_of_ranks_round_after_round() {
        let threads: Vec<_> = seats(3)
            .map(|seat| {
                thread::spawn(move || {
                    let round = |round: usize| seat.gather(100 * round + seat.rank()).unwrap();
                    (0..500).map(round).collect::<Vec<_>>()
                })
            })
            .collect();
        for thread in threads {
            for (round, heard) in thread.join().unwrap().iter().enumerate() {
                let first = 100 * round;
                assert_eq!(**heard, [first, first + 1, first + 2]);
            }
        }
    }

    #[test]
    fn nobody_waits_for_a_rank_that_has_left() {
        let mut all: Vec<_> = seats::<u8>(2).collect();
        let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
        let waiting = thread::spawn(move || first.gather(1));
        // Whether it leaves before or after the other one waits makes no difference.
        drop(second);
        assert_eq!(waiting.join().unwrap(), Err(RankLost { rank: 1 }));
    }

    #[test]
    fn a_round_that_is_over_is_heard_although_a_rank_has_left_since() {
        let mut all: Vec<_> = seats(2).collect();
        let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
        let waiting = thread::spawn(move || first.gather('a'));
        let heard = second.gather('b').unwrap();
        drop(second);
        assert_eq!(*heard, ['a', 'b']);
        assert_eq!(waiting.join().unwrap().unwrap(), heard);
    }
}
