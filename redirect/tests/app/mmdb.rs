//! A small file in the MaxMind DB format, made as its specification says.

/// A file that says `country` of 192.0.2.0/24, and `FR` of 2001:db8::/32, where that is registered.
pub fn sample(country: &str) -> Vec<u8> {
    let mut data = Vec::new();
    let mut offsets = Vec::new();
    for (key, code) in [("country", country), ("registered_country", "FR")] {
        offsets.push(data.len() as u32);
        map(&mut data, 1);
        text(&mut data, key);
        map(&mut data, 1);
        text(&mut data, "iso_code");
        text(&mut data, code);
    }
    let mut nodes: Vec<[Option<Next>; 2]> = vec![[None, None]];
    // IPv4 addresses stand at ::/96.
    insert(&mut nodes, u128::from(u32::from_be_bytes([192, 0, 2, 0])), 96 + 24, offsets[0]);
    insert(&mut nodes, 0x2001_0db8 << 96, 32, offsets[1]);
    let count = nodes.len() as u32;
    let mut file = Vec::new();
    for side in nodes.iter().flatten() {
        let record = match side {
            None => count,
            Some(Next::Node(node)) => *node,
            Some(Next::Data(offset)) => count + 16 + offset,
        };
        file.extend_from_slice(&record.to_be_bytes()[1..]);
    }
    file.extend_from_slice(&[0; 16]);
    file.extend_from_slice(&data);
    file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    map(&mut file, 9);
    for (key, kind, value) in [
        ("binary_format_major_version", 5, 2_u32),
        ("binary_format_minor_version", 5, 0),
        ("ip_version", 5, 6),
        ("record_size", 5, 24),
        ("node_count", 6, count),
    ] {
        text(&mut file, key);
        let bytes: Vec<u8> = value.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        file.push(kind << 5 | bytes.len() as u8);
        file.extend_from_slice(&bytes);
    }
    text(&mut file, "build_epoch");
    file.extend_from_slice(&[1, 2, 9]);
    text(&mut file, "database_type");
    text(&mut file, "Test-Country");
    text(&mut file, "description");
    map(&mut file, 1);
    text(&mut file, "en");
    text(&mut file, "for tests");
    text(&mut file, "languages");
    file.extend_from_slice(&[1, 4]);
    text(&mut file, "en");
    file
}

#[derive(Clone, Copy)]
enum Next {
    Node(u32),
    Data(u32),
}

fn insert(nodes: &mut Vec<[Option<Next>; 2]>, network: u128, bits: u32, offset: u32) {
    let mut at = 0;
    for bit in 0..bits {
        let side = (network >> (127 - bit) & 1) as usize;
        if bit + 1 == bits {
            nodes[at][side] = Some(Next::Data(offset));
        } else if let Some(Next::Node(node)) = nodes[at][side] {
            at = node as usize;
        } else {
            nodes.push([None, None]);
            let node = nodes.len() - 1;
            nodes[at][side] = Some(Next::Node(node as u32));
            at = node;
        }
    }
}

fn map(to: &mut Vec<u8>, pairs: u8) {
    to.push(7 << 5 | pairs);
}

fn text(to: &mut Vec<u8>, text: &str) {
    match text.len() as u8 {
        bytes @ 0..29 => to.push(2 << 5 | bytes),
        bytes => to.extend_from_slice(&[2 << 5 | 29, bytes - 29]),
    }
    to.extend_from_slice(text.as_bytes());
}
