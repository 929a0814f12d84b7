use super::*;

/// A log of these events: register, type, digest, data.
pub fn log(events: &[(u32, u32, [u8; 48], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let id = [&SIGNATURE[..], &[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0]].concat();
    bytes.extend([1, 0, 0, 0, 3, 0, 0, 0]);
    bytes.extend([0; 20]);
    bytes.extend((id.len() as u32).to_le_bytes());
    bytes.extend(id);
    for (register, kind, digest, data) in events {
        bytes.extend(register.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(TPM_ALG_SHA384.to_le_bytes());
        bytes.extend(digest);
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(*data);
    }
    bytes
}

fn of(data: &[u8]) -> [u8; 48] {
    Sha384::digest(data).into()
}

const ACTION: u32 = 0x8000_0007;

#[test]
fn replay_extends_each_register_in_order_and_skips_what_extends_nothing() {
    let events: &[(u32, u32, [u8; 48], &[u8])] = &[
        (1, ACTION, of(b"a"), b"a"),
        (0, EV_NO_ACTION, [0; 48], b"StartupLocality"),
        (4, 0x6, [7; 48], b"tag"),
        (1, EV_SEPARATOR, of(&[0; 4]), &[0; 4]),
    ];
    let bytes = log(events);
    let rtmrs = EventLog::parse(&bytes).unwrap().replay();
    let extend = |old: [u8; 48], digest: [u8; 48]| of(&[old, digest].concat());
    let expected = extend(extend([0; 48], of(b"a")), of(&[0; 4]));
    assert_eq!(rtmrs, [expected, [0; 48], [0; 48], extend([0; 48], [7; 48])]);
}

#[test]
fn a_log_may_end_at_its_last_event_or_in_padding() {
    let bytes = log(&[(1, ACTION, of(b"a"), b"a")]);
    for padding in [&[][..], &[0xff; 1], &[0xff; 4096], &[0; 3], &[0; 4096]] {
        let padded = [&bytes[..], padding].concat();
        assert_eq!(EventLog::parse(&padded).unwrap().events().len(), 1, "{}", padding.len());
    }
    let mixed = [&bytes[..], &[0xff; 20], &[0; 20]].concat();
    assert_eq!(EventLog::parse(&mixed).unwrap_err(), EventLogError::Padding { event: 1 });
    for cut in 66..bytes.len() {
        let error = EventLog::parse(&bytes[..cut]).unwrap_err();
        assert!(
            matches!(error, EventLogError::Truncated { event: 1 } | EventLogError::Digests { event: 1 }),
            "{cut}: {error}"
        );
    }
}

#[test]
fn data_is_believed_only_where_the_digest_is_of_it() {
    let variable = [&[9; 16][..], &1u64.to_le_bytes(), &2u64.to_le_bytes(), &[b'B', 0], b"on"].concat();
    for (kind, digest, data, expected) in [
        (ACTION, of(b"a"), &b"a"[..], Ok(true)),
        (ACTION, of(b"b"), b"a", Err("EV_EFI_ACTION")),
        (0x8, of(b"v"), b"w", Err("EV_S_CRTM_VERSION")),
        (0x8000_0001, of(b"v"), b"w", Err("EV_EFI_VARIABLE_DRIVER_CONFIG")),
        (0x8000_00e0, of(b"v"), b"w", Err("EV_EFI_VARIABLE_AUTHORITY")),
        (0x8000_0006, of(b"v"), b"w", Err("EV_EFI_GPT_EVENT")),
        (0x8000_000c, of(b"v"), b"w", Err("EV_EFI_VARIABLE_BOOT2")),
        (EV_EFI_VARIABLE_BOOT, of(b"on"), &variable, Ok(true)),
        (EV_EFI_VARIABLE_BOOT, of(&variable), &variable, Ok(true)),
        (EV_EFI_VARIABLE_BOOT, of(b"no"), &variable, Err("EV_EFI_VARIABLE_BOOT")),
        (EV_EFI_VARIABLE_BOOT, of(b"on"), &variable[..35], Err("EV_EFI_VARIABLE_BOOT")),
        (EV_IPL, of(b"quiet"), b"kernel_cmdline: quiet\0", Ok(true)),
        (EV_IPL, of(b"quiet"), b"kernel_cmdline: debug\0", Err("EV_IPL")),
        (EV_IPL, of(b"set a"), b"grub_cmd: set b\0", Err("EV_IPL")),
        (EV_IPL, of(b"a file"), b"/vmlinuz\0", Ok(false)),
        (0x8000_0003, of(b"a file"), b"path", Ok(false)),
        (0x1234, of(b"a file"), b"whatever", Ok(false)),
    ] {
        let bytes = log(&[(2, kind, digest, data)]);
        let found = EventLog::parse(&bytes).map(|log| log.events()[0].data.is_measured());
        let expected = expected.map_err(|name| Inconsistency::EventDigest { event: 1, name }.into());
        assert_eq!(found, expected, "{kind:#x}");
    }
}

#[test]
fn measured_are_exactly_the_bytes_that_the_digest_is_of_and_a_label_is_none_of_them() {
    let variable = [&[9; 16][..], &1u64.to_le_bytes(), &2u64.to_le_bytes(), &[b'B', 0], b"on"].concat();
    for (kind, digest, data, measured, label) in [
        (EV_IPL, of(b"quiet"), &b"kernel_cmdline: quiet\0"[..], &b"quiet"[..], Some("kernel_cmdline")),
        (EV_IPL, of(b"quiet"), b"grub_cmd: quiet", b"quiet", Some("grub_cmd")),
        (EV_IPL, of(b"quiet"), b"quiet", b"quiet", None),
        (EV_IPL, of(b"quiet\0"), b"quiet\0", b"quiet\0", None),
        (EV_EFI_VARIABLE_BOOT, of(b"on"), &variable, b"on", Some("B")),
        (EV_EFI_VARIABLE_BOOT, of(&variable), &variable, &variable, None),
    ] {
        let bytes = log(&[(3, kind, digest, data)]);
        let log = EventLog::parse(&bytes).unwrap();
        let event = log.events()[0];
        assert_eq!(event.data, EventData::Measured(measured));
        assert_eq!(event.label.map(Label::text).as_deref(), label);
    }
}

#[test]
fn separators_are_one_a_register_and_say_that_they_are() {
    let separator = |register, data: &'static [u8]| (register, EV_SEPARATOR, of(data), data);
    let disguised = |kind, data: &'static [u8]| (1, kind, of(&[0; 4]), data);
    let (zero, ones): (&[u8], &[u8]) = (&[0; 4], &[0xff; 4]);
    let second = Inconsistency::SecondSeparator { event: 2, rtmr: RtmrIndex(0) };
    for (events, expected) in [
        (vec![separator(1, zero), separator(2, ones)], &[][..]),
        (vec![separator(1, zero), separator(1, zero)], &[second]),
        (vec![separator(1, zero), separator(1, ones)], &[second]),
        // Under whatever type and with whatever data: it was extended.
        (vec![separator(1, zero), disguised(ACTION, zero)], &[second]),
        (vec![disguised(EV_IPL, b"a file"), separator(1, ones)], &[second]),
        (vec![disguised(0x1234, b""), disguised(0x6, b"tag")], &[second]),
        // An event that extends nothing is none, and neither is a BootOrder of two entries.
        (vec![separator(1, zero), disguised(EV_NO_ACTION, zero)], &[]),
        (vec![separator(1, zero), (1, EV_IPL, of(&[1, 0, 0, 0]), &[1, 0, 0, 0])], &[]),
        (vec![separator(1, b"none")], &[Inconsistency::SeparatorData { event: 1 }]),
        (vec![separator(1, &[1, 0, 0, 0])], &[Inconsistency::SeparatorData { event: 1 }]),
        (vec![separator(1, b"")], &[Inconsistency::SeparatorData { event: 1 }]),
    ] {
        let bytes = log(&events);
        assert_eq!(EventLog::read(&bytes).unwrap().inconsistencies(), expected, "{events:?}");
        let refused = expected.first().map_or(Ok(()), |first| Err(EventLogError::from(*first)));
        assert_eq!(EventLog::parse(&bytes).map(drop), refused, "{events:?}");
    }
}

#[test]
fn a_log_that_lies_is_read_whole_and_says_where() {
    let bytes = log(&[
        (1, EV_SEPARATOR, of(&[0; 4]), &[0; 4]),
        (2, ACTION, of(b"b"), b"a"),
        (1, EV_SEPARATOR, of(&[0; 4]), &[0; 4]),
    ]);
    let log = EventLog::read(&bytes).unwrap();
    let lie = Inconsistency::EventDigest { event: 2, name: "EV_EFI_ACTION" };
    assert_eq!(log.inconsistencies(), [lie, Inconsistency::SecondSeparator { event: 3, rtmr: RtmrIndex(0) }]);
    assert_eq!((log.events().len(), log.events()[1].data), (3, EventData::Described(b"a")));
    assert_eq!(log.replay()[1], of(&[[0; 48], of(b"b")].concat()));
}

#[test]
fn what_is_no_log_is_refused() {
    let bytes = log(&[(1, ACTION, of(b"a"), b"a")]);
    let with = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        EventLog::parse(&bytes).map(drop).unwrap_err()
    };
    for (at, value, expected) in [
        (4, 4, EventLogError::Header),     // type of the first event
        (28, 0xff, EventLogError::Header), // its length
        (32, b's', EventLogError::Header), // its signature
        (56, 2, EventLogError::Header),    // number of algorithms
        (56, 0, EventLogError::Header),
        (60, 0x0b, EventLogError::NoSha384), // algorithm
        (62, 32, EventLogError::NoSha384),   // its digest's size
        (64, 1, EventLogError::Header),      // vendor information
        (65, 0, EventLogError::Register { event: 1, index: 0 }),
        (65, 5, EventLogError::Register { event: 1, index: 5 }),
        (73, 2, EventLogError::Digests { event: 1 }),
        (77, 4, EventLogError::Digests { event: 1 }),
        (127, 0xff, EventLogError::Truncated { event: 1 }),
    ] {
        assert_eq!(with(at, value), expected, "byte {at}");
    }
    assert_eq!(EventLog::parse(&[]).unwrap_err(), EventLogError::Header);
    let len = MAX_BYTES + 1;
    assert_eq!(EventLog::parse(&vec![0; len]).unwrap_err(), EventLogError::TooLong { len });
}
