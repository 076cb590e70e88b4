//! Clients are simulated: how long they wait grows with how much is moved.

use super::*;

const MIB: u64 = 1 << 20;
const TICK: Duration = Duration::from_millis(10);

struct World {
    pace: Pace,
    latencies: Arc<Latencies>,
    now: Instant,
    now_ms: u64,
    wanted: Wanted,
    left: u64,
    /// Requests of clients in a tick, and how long they wait when nothing is moved.
    requests: usize,
    alone: Duration,
    /// They wait twice as long at so many bytes a second.
    doubles_at: f64,
    carried: u64,
}

impl World {
    fn new(requests: usize) -> World {
        let latencies = Arc::<Latencies>::default();
        World {
            pace: Pace::new(FLOOR, latencies.clone()),
            latencies,
            now: Instant::now(),
            now_ms: 1_000_000,
            wanted: Wanted::Auto,
            left: 1 << 40,
            requests,
            alone: Duration::from_millis(2),
            doubles_at: 200.0 * MIB as f64,
            carried: 0,
        }
    }

    /// So many seconds; bytes a second that were moved by whoever can move 2 GiB a second.
    fn run(&mut self, seconds: u64, moving: bool) -> u64 {
        let mut total = 0;
        for _ in 0..seconds * 100 {
            self.pace.set(self.wanted, self.left, self.now_ms, self.now);
            let mut moved = 0;
            let bytes = self.pace.portion(4 * MIB);
            while moving && moved < 20 * MIB && self.pace.claim(bytes, false, self.now).is_none() {
                moved += bytes;
            }
            total += moved;
            self.left = self.left.saturating_sub(moved);
            // The disk's queue lasts a little longer than the tick.
            self.carried = (self.carried * 4 + moved) / 5;
            let rate = self.carried as f64 / TICK.as_secs_f64();
            let took = self.alone.mul_f64(1.0 + rate / self.doubles_at);
            (0..self.requests).for_each(|_| self.latencies.read(4096, took));
            self.now += TICK;
            self.now_ms += TICK.as_millis() as u64;
        }
        total / seconds
    }
}

#[test]
fn where_nobody_waits_it_goes_as_fast_as_it_can() {
    let mut world = World::new(0);
    world.run(2, false);
    assert!(world.run(5, true) > 1900 * MIB);
    assert_eq!(world.pace.limit(), None);
}

#[test]
fn clients_wait_half_as_long_again_at_most_and_it_is_not_slower_than_that() {
    let mut world = World::new(5);
    world.run(10, false);
    world.run(30, true);
    // At 100 MiB/s they wait half as long again.
    let rate = world.run(60, true) / MIB;
    assert!((40..=115).contains(&rate), "{rate} MiB/s");
    world.requests = 0;
    world.run(5, true);
    assert!(world.run(5, true) > 1900 * MIB);
    world.requests = 5;
    world.run(5, true);
    let rate = world.run(60, true) / MIB;
    assert!((40..=115).contains(&rate), "{rate} MiB/s");
}

#[test]
fn it_has_its_floor_however_long_clients_wait() {
    let mut world = World::new(5);
    world.run(5, false);
    world.doubles_at = MIB as f64;
    let rate = world.run(20, true);
    assert!((FLOOR * 95 / 100..=FLOOR * 12 / 10).contains(&rate), "{rate}");
}

#[test]
fn who_was_never_seen_in_peace_is_compared_with_the_floor() {
    let mut world = World::new(5);
    world.run(40, true);
    let rate = world.run(40, true) / MIB;
    assert!((40..=150).contains(&rate), "{rate} MiB/s");
}

#[test]
fn a_bandwidth_is_kept_to_whatever_clients_feel() {
    for requests in [0, 5] {
        let mut world = World::new(requests);
        world.wanted = Wanted::Bandwidth(300 * MIB);
        world.doubles_at = MIB as f64;
        world.run(1, true);
        let rate = world.run(10, true) / MIB;
        assert!((285..=315).contains(&rate), "{rate} MiB/s");
    }
}

#[test]
fn a_deadline_is_met_whatever_clients_feel() {
    let mut world = World::new(5);
    world.doubles_at = MIB as f64;
    world.run(5, false);
    world.left = 60 * 400 * MIB;
    world.wanted = Wanted::Deadline(world.now_ms + 60_000);
    let rate = world.run(50, true) / MIB;
    assert!((380..=440).contains(&rate), "{rate} MiB/s");
    world.run(10, true);
    assert!(world.left < 60 * 400 * MIB / 50, "{} left", world.left);
    // Too late: as fast as it goes.
    world.wanted = Wanted::Deadline(1);
    world.left = 1 << 40;
    world.run(1, true);
    assert!(world.run(5, true) > 1900 * MIB);
}

#[test]
fn the_most_endangered_wait_for_nobody() {
    let mut world = World::new(5);
    world.doubles_at = MIB as f64;
    world.run(5, true);
    for _ in 0..1000 {
        assert_eq!(world.pace.claim(4 * MIB, true, world.now), None);
    }
    assert!(world.pace.claim(4 * MIB, false, world.now).is_some() || world.pace.limit().is_some());
}

#[test]
fn clients_that_become_slower_by_themselves_do_not_hold_it_down_for_ever() {
    let mut world = World::new(5);
    world.run(10, false);
    world.run(20, true);
    world.alone *= 3;
    world.run(20, true);
    assert!(world.run(5, true) < FLOOR * 12 / 10);
    world.run(120, true);
    let rate = world.run(30, true) / MIB;
    assert!((40..=150).contains(&rate), "{rate} MiB/s");
}
