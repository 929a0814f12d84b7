//! Every kind of unusable input is refused with one line.

use super::*;

#[test]
fn bad_numbers_are_refused() {
    let load = |args: RunArgs| VmConfig::load(args).unwrap_err().to_string();
    let cpus = |n| load(RunArgs { cpus: Some(n), ..RunArgs::default() });
    assert_eq!(cpus(0), "--cpus 0: a guest has 1 to 255 CPUs");
    assert_eq!(cpus(9999), "--cpus 9999: a guest has 1 to 255 CPUs");
    for size in [0, 4096, (512 << 20) + 1, MEMORY_MAX + 4096] {
        let line = load(RunArgs { memory: Some(units::Size(size)), ..RunArgs::default() });
        assert_eq!(line, ConfigError::Memory(size).to_string());
        assert!(
            line.contains("without a suffix is in bytes, so write 512M"),
            "`memory = 512` is bytes: {line}"
        );
    }
    assert_eq!(load(RunArgs::default()), "no firmware given: use --firmware ROM");
}

#[test]
fn disks_that_have_no_place_on_the_bus_are_refused_with_the_limit() {
    let disk = DiskArgs { path: "disk".into(), readonly: false, id: None };
    let vsock = VsockArgs { cid: 3, socket: "s".into() };
    for (console, vsock, room) in [
        (None, None, 29),
        (Some(Backend::Null), None, 30),
        (None, Some(vsock.clone()), 28),
        (Some(Backend::Null), Some(vsock), 29),
    ] {
        for disks in [room, room + 1, 35] {
            let args = RunArgs {
                disk: vec![disk.clone(); disks],
                console: console.clone(),
                vsock: vsock.clone(),
                ..RunArgs::default()
            };
            let refused = check_devices(&args).err().map(|error| error.to_string());
            assert_eq!(refused.is_some(), disks > room, "{disks}");
            let line = refused.unwrap_or_default();
            assert!(disks == room || line.contains(&format!("room for {room} (a guest has 31")), "{line}");
        }
    }
}

#[test]
fn inputs_without_end_are_refused_at_their_limit() {
    for max in [0, 1, 4096] {
        let line = read("kernel", Path::new("/dev/zero"), max).unwrap_err().to_string();
        assert!(line.contains("too large"), "{line}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "four").unwrap();
    assert_eq!(read("kernel", file.path(), 4).unwrap(), b"four");
    assert!(read("kernel", file.path(), 3).is_err());
}

#[test]
fn a_debug_policy_needs_an_explicit_consent() {
    assert!(check_policy(DEFAULT_SNP_POLICY, false).is_ok());
    assert!(check_policy(0xb_0000, false).is_err());
    assert!(check_policy(0xb_0000, true).is_ok());
    assert!(check_policy(0x1_0000, true).is_err(), "bit 17 must be one");
}

#[test]
fn files_that_are_missing_or_no_firmware_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rom");
    let load = || read_firmware(Some(&path)).unwrap_err().to_string();
    assert!(load().starts_with(&format!("firmware {}: No such file", path.display())), "{}", load());
    for (bytes, reason) in [(vec![0u8; 100], "100 bytes"), (vec![0xff; 4096], "not a ROM")] {
        std::fs::write(&path, bytes).unwrap();
        assert!(load().contains(reason), "{}", load());
    }
}

#[test]
fn disks_are_whole_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let disk = |id: Option<&str>| DiskArgs { path: path.clone(), readonly: false, id: id.map(str::to_owned) };
    assert!(check_disk((0, &disk(None))).is_err(), "missing");
    for nothing_with_sectors in ["/dev/null", "/"] {
        let disk = DiskArgs { path: nothing_with_sectors.into(), ..disk(None) };
        assert!(check_disk((0, &disk)).is_err(), "{nothing_with_sectors}");
    }
    for (len, good) in [(0, false), (511, false), (512, true), (1 << 20, true)] {
        std::fs::write(&path, vec![0; len]).unwrap();
        assert_eq!(check_disk((0, &disk(None))).is_ok(), good, "{len} bytes");
    }
    assert_eq!(check_disk((7, &disk(None))).unwrap().id, "disk7");
    assert!(check_disk((0, &disk(Some("longer than twenty characters")))).is_err());
}

#[test]
fn a_busy_vsock_path_and_reserved_cids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let vsock = |cid, name: &str| VsockArgs { cid, socket: dir.path().join(name) };
    assert!(check_vsock(&vsock(3, "free")).is_ok());
    for cid in [0, 1, 2, u32::MAX] {
        assert!(check_vsock(&vsock(cid, "free")).is_err(), "cid {cid}");
    }
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("busy")).unwrap();
    let line = check_vsock(&vsock(3, "busy")).unwrap_err().to_string();
    assert!(line.ends_with("a program listens there; is another guest using it?"), "{line}");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("left behind")).unwrap());
    assert!(check_vsock(&vsock(3, "left behind")).is_ok());
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(check_vsock(&vsock(3, "file")).is_err());
    assert!(check_vsock(&vsock(3, &"x".repeat(100))).is_err());
}

#[test]
fn host_data_and_id_blocks_have_exact_sizes() {
    let host_data = |text: &str| fixed_hex::<32>("host-data", Some(text));
    assert_eq!(host_data(&"ab".repeat(32)).unwrap(), [0xab; 32]);
    for text in ["", "ab", &"ab".repeat(33), &"xy".repeat(32)] {
        assert!(host_data(text).is_err());
    }
    assert_eq!(fixed_hex::<48>("tdx-mrowner", None).unwrap(), [0; 48]);
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, len: usize| {
        std::fs::write(dir.path().join(name), vec![0; len]).unwrap();
        dir.path().join(name)
    };
    let (block, auth, short) = (write("block", 96), write("auth", 4096), write("short", 95));
    assert!(!read_id_block(Some(&block), Some(&auth)).unwrap().unwrap().author_key);
    assert!(read_id_block(None, None).unwrap().is_none());
    for (block, auth) in [(Some(&block), None), (None, Some(&auth)), (Some(&short), Some(&auth))] {
        assert!(read_id_block(block.map(PathBuf::as_path), auth.map(PathBuf::as_path)).is_err());
    }
}

#[test]
fn a_td_that_its_host_may_debug_must_be_asked_for_twice() {
    let args = |allow_debug| RunArgs {
        tdx_attributes: Some("0x10000001".parse().unwrap()),
        allow_debug,
        ..RunArgs::default()
    };
    let line = td_identity(&args(false)).unwrap_err().to_string();
    assert!(line.contains("--allow-debug"), "{line}");
    assert_eq!(td_identity(&args(true)).unwrap().attributes, 0x1000_0001);
    assert_eq!(td_identity(&RunArgs::default()).unwrap().attributes, TD_SEPT_VE_DISABLE);
}
