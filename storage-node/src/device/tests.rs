//! One suite over all backends, and the latch.

mod pool;

use super::simulated::{Fault, SimulatedDisk, Unflushed};
use super::*;
use std::io::Write;

const SIZE: u64 = 4 << 20;

fn filled(byte: u8, blocks: usize) -> AlignedBytes {
    let mut buf = AlignedBuf::zeroed(blocks * BLOCK);
    buf.fill(byte);
    buf.share()
}

fn with_every_backend(test: impl Fn(Arc<dyn Device>)) {
    test(SimulatedDisk::new(SIZE, 1).device());
    for backend in [Backend::Auto, Backend::Pread] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        create_file(&path, SIZE).unwrap();
        let device = open_file(&path, backend).unwrap();
        println!("{}", device.info().backend);
        test(device);
    }
}

#[test]
fn what_is_written_is_read() {
    with_every_backend(|device| {
        assert_eq!(device.info().size, SIZE);
        device.allocate(0, 1 << 20).unwrap();
        let writes: Vec<_> = (0..64u64)
            .map(|n| device.write(n * 3 * BLOCK as u64, filled(n as u8 + 1, 2)))
            .collect();
        writes.into_iter().for_each(|write| write.wait().unwrap());
        device.flush().wait().unwrap();
        let read = |n: u64| device.read(n * 3 * BLOCK as u64, AlignedBuf::zeroed(3 * BLOCK));
        let reads: Vec<_> = (0..64).map(read).collect();
        for (n, read) in reads.into_iter().enumerate() {
            let buf = read.wait().unwrap();
            assert!(buf[..2 * BLOCK].iter().all(|b| *b == n as u8 + 1));
            assert!(buf[2 * BLOCK..].iter().all(|b| *b == 0));
        }
        device.check().unwrap();
    });
}

#[test]
fn large_writes_and_slices_work() {
    with_every_backend(|device| {
        let bytes = filled(7, 512);
        device.write(0, bytes.clone()).wait().unwrap();
        device
            .write(3 << 20, bytes.slice(BLOCK..3 * BLOCK))
            .wait()
            .unwrap();
        let buf = device.read(0, AlignedBuf::zeroed(2 << 20)).wait().unwrap();
        assert!(buf.iter().all(|b| *b == 7));
    });
}

#[test]
fn reading_past_the_end_is_an_error() {
    with_every_backend(|device| {
        let past = device.read(SIZE, AlignedBuf::zeroed(BLOCK)).wait();
        assert_eq!(past.map(|_| ()).map_err(|e| e.kind), Err(DeviceErrorKind::Read));
        assert!(
            device
                .read(SIZE - BLOCK as u64, AlignedBuf::zeroed(2 * BLOCK))
                .wait()
                .is_err()
        );
    });
}

#[test]
fn dropped_completions_abandon_nothing_but_the_answer() {
    with_every_backend(|device| {
        for n in 0..300u64 {
            drop(device.write((n % 100) * BLOCK as u64, filled(9, 1)));
            drop(device.read((n % 100) * BLOCK as u64, AlignedBuf::zeroed(BLOCK)));
        }
        device.flush().wait().unwrap();
        drop(device);
    });
}

#[test]
fn a_device_can_be_awaited() {
    with_every_backend(|device| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            device.write(0, filled(3, 1)).await.unwrap();
            assert_eq!(device.read(0, AlignedBuf::zeroed(BLOCK)).await.unwrap()[0], 3);
        });
    });
}

#[test]
fn an_open_disk_cannot_be_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    create_file(&path, SIZE).unwrap();
    let device = open_file(&path, Backend::Auto).unwrap();
    let again = open_file(&path, Backend::Pread).map(|_| ());
    assert!(again.is_err_and(|e| e.what.contains("in use")));
    drop(device);
    open_file(&path, Backend::Pread).unwrap();
}

#[test]
fn a_removed_or_truncated_file_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    create_file(&path, SIZE).unwrap();
    let device = open_file(&path, Backend::Auto).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(BLOCK as u64)
        .unwrap();
    assert!(device.check().unwrap_err().what.contains("truncated"));
    std::fs::remove_file(&path).unwrap();
    assert!(device.check().unwrap_err().what.contains("removed"));
}

#[test]
fn the_first_write_or_flush_failure_is_the_last_operation() {
    for fault in [Fault::WriteError, Fault::FlushError] {
        let disk = SimulatedDisk::new(SIZE, 1);
        let device = Latched::new(disk.device());
        device.write(0, filled(1, 1)).wait().unwrap();
        disk.arm(Fault::ReadError);
        assert!(device.read(0, AlignedBuf::zeroed(BLOCK)).wait().is_err());
        assert!(device.read(0, AlignedBuf::zeroed(BLOCK)).wait().is_ok());
        disk.arm(fault);
        // Dropped unseen: it latches all the same.
        drop(device.write(0, filled(1, 1)));
        drop(device.flush());
        let before = disk.operations();
        assert!(device.read(0, AlignedBuf::zeroed(BLOCK)).wait().is_err());
        assert!(device.write(0, filled(1, 1)).wait().is_err());
        assert!(device.check().is_err() && device.failure().is_some());
        assert_eq!(disk.operations(), before);
    }
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_tears_the_rest() {
    let disk = SimulatedDisk::new(SIZE, 3);
    let device = disk.device();
    device.write(0, filled(1, 16)).wait().unwrap();
    device.flush().wait().unwrap();
    device.write(0, filled(2, 16)).wait().unwrap();
    disk.reboot();
    let bytes = disk.peek(0, 16 * BLOCK);
    let sectors: Vec<u8> = bytes.chunks(simulated::SECTOR).map(|sector| sector[0]).collect();
    assert!(sectors.contains(&1) && sectors.contains(&2));
    assert!(
        bytes
            .chunks(simulated::SECTOR)
            .all(|sector| sector.iter().all(|b| *b == sector[0]))
    );
}

/// As kernels do: the pages are clean after it, and a flush that succeeds later says nothing about them.
#[test]
fn a_flush_after_a_failed_one_makes_nothing_of_before_durable() {
    let written = |disk: &SimulatedDisk, bytes: u8| disk.device().write(0, filled(bytes, 1)).wait().unwrap();
    let failed = || {
        let disk = SimulatedDisk::new(SIZE, 3);
        written(&disk, 1);
        disk.device().flush().wait().unwrap();
        written(&disk, 2);
        disk.arm(Fault::FlushError);
        disk.device().flush().wait().unwrap_err();
        disk.device().flush().wait().unwrap();
        assert!(!disk.is_durable(0, BLOCK as u64));
        assert_eq!(disk.peek(0, BLOCK), [2; BLOCK], "readers see it");
        disk
    };
    for (unflushed, expected) in [(Unflushed::Lost, 1), (Unflushed::Kept, 2)] {
        let disk = failed();
        disk.reboot_with(unflushed);
        assert_eq!(disk.peek(0, BLOCK), [expected; BLOCK]);
        assert!(disk.is_durable(0, BLOCK as u64));
    }
    // What is written again is dirty again; until it is flushed, what was durable at first comes back.
    let disk = failed();
    written(&disk, 3);
    disk.reboot_with(Unflushed::Lost);
    assert_eq!(disk.peek(0, BLOCK), [1; BLOCK]);
    let disk = failed();
    written(&disk, 3);
    disk.device().flush().wait().unwrap();
    disk.reboot_with(Unflushed::Lost);
    assert_eq!(disk.peek(0, BLOCK), [3; BLOCK]);
}

/// What a disk loses by habit it loses until it is told otherwise, whatever happens to the machine.
#[test]
fn a_disk_that_lies_says_that_all_is_well() {
    let disk = SimulatedDisk::new(SIZE, 7);
    let device = disk.device();
    disk.lose_writes(1_000);
    device.write(0, filled(1, 1)).wait().unwrap();
    device.flush().wait().unwrap();
    assert_eq!(disk.peek(0, 1), [0], "it was never written");
    disk.reboot();
    device.write(0, filled(2, 1)).wait().unwrap();
    assert_eq!((disk.peek(0, 1)[0], disk.lies()), (0, 2));
    disk.lose_writes(0);
    disk.lie_about_flushes(true);
    device.write(0, filled(3, 1)).wait().unwrap();
    device.flush().wait().unwrap();
    assert_eq!(disk.peek(0, 1), [3], "readers see what is in the cache");
    disk.reboot_with(Unflushed::Lost);
    assert_eq!((disk.peek(0, 1)[0], disk.lies()), (0, 3));
    disk.lie_about_flushes(false);
    device.write(0, filled(4, 1)).wait().unwrap();
    device.flush().wait().unwrap();
    disk.reboot_with(Unflushed::Lost);
    assert_eq!((disk.peek(0, 1)[0], disk.lies()), (4, 3));
}

#[test]
fn a_missing_file_or_a_folder_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let error = open_file(&folder.path().join("none"), Backend::Auto)
        .map(|_| ())
        .unwrap_err();
    assert!(error.what.contains("none"), "{error}");
    assert!(open_file(folder.path(), Backend::Auto).is_err());
    let mut text = std::fs::File::create(folder.path().join("short")).unwrap();
    text.write_all(b"hello").unwrap();
    let device = open_file(&folder.path().join("short"), Backend::Auto).unwrap();
    assert_eq!(device.info().size, 0);
}

/// A read of an empty pipe is never answered: dropping the device must not wait for it, nor free its buffer.
#[test]
fn dropping_a_device_that_hangs_ends() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let pipe = std::fs::File::from(std::os::fd::OwnedFd::from(reader));
    let Ok(device) = uring::Uring::start(Arc::new(DiskFile::of(pipe, SIZE)), "hung".into()) else {
        println!("no io_uring here: nothing to test");
        return;
    };
    let read = device.read(0, AlignedBuf::zeroed(BLOCK));
    let started = Instant::now();
    drop(device);
    assert!(started.elapsed() < 3 * STOP_PATIENCE, "{:?}", started.elapsed());
    // The thread that was left behind still owns the buffer.
    writer.write_all(&[7; BLOCK]).unwrap();
    assert_eq!(read.wait().unwrap()[BLOCK - 1], 7);
}
