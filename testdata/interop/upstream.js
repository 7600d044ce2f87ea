// An upstream switch that speaks iso87-binary by jsPOS, a port of jPOS's packagers to JavaScript. The test says what it sends; the bytes
// are jsPOS's, both ways.
//
//   node upstream.js HOST PORT
//   command  {"message": {"0": "0800", "11": "000001", ...}}
//   events   {"event": "connected"}, {"event": "received", "message": {...}, "same": true}, {"event": "closed"}, {"event": "fault", ...}
'use strict';

const net = require('node:net');
const { ISOBasePackager, packer } = require('jspos');
const { tell, commands, frames } = require('./lines');

// The kinds of ISO 8583:1987 as jPOS's ISO87B packager packs them.
const n = (length) => new packer.IFB_NUMERIC(length, '', true); // an odd count is padded on the left
const lln = (length) => new packer.IFB_LLNUM(length, '', false); // and here on the right
const text = (length) => new packer.IF_CHAR(length, '');
const llText = (length) => new packer.IFB_LLCHAR(length, '');
const lllText = (length) => new packer.IFB_LLLCHAR(length, '');
const bytes = (length) => new packer.IFB_BINARY(length, '');

const fields = {
  0: n(4), 1: new packer.IFB_BITMAP(16, ''), 2: lln(19), 3: n(6), 4: n(12), 7: n(10), 11: n(6), 12: n(6), 13: n(4), 14: n(4), 15: n(4),
  18: n(4), 22: n(3), 23: n(3), 25: n(2), 32: lln(11), 33: lln(11), 35: lln(37), 37: text(12), 38: text(6), 39: text(2), 41: text(8),
  42: text(15), 43: text(40), 44: llText(25), 48: lllText(999), 49: text(3), 52: bytes(8), 54: lllText(120),
  55: new packer.IFB_LLLBINARY(999, ''), 62: lllText(999), 70: n(3), 90: n(42), 95: text(42), 100: lln(11), 102: llText(28),
};

class Packager extends ISOBasePackager {
  constructor() {
    super();
    this.setFieldPackager(Object.assign([], fields));
  }
}

const packager = new Packager();

function pack(elements) {
  const message = packager.createISOMsg();
  for (const [number, value] of Object.entries(elements)) {
    message.setField(Number(number), value);
  }
  return Buffer.from(message.pack());
}

// unpack returns the elements, and whether jsPOS packs them to the same bytes again.
function unpack(body) {
  const message = packager.createISOMsg();
  message.unpack([...body]);
  const elements = {};
  for (const number of Object.keys(fields)) {
    const value = message.getValue(number);
    if (value !== undefined && number !== '1') {
      elements[number] = Array.isArray(value) ? Buffer.from(value).toString('hex').toUpperCase() : value;
    }
  }
  return { message: elements, same: Buffer.from(message.pack()).equals(body) };
}

const socket = net.connect({ host: process.argv[2], port: Number(process.argv[3]) }, () => tell({ event: 'connected' }));
frames(socket, (frame) => tell({ event: 'received', ...unpack(frame.subarray(2)) }));
socket.on('close', () => tell({ event: 'closed' }));

commands((command) => {
  const body = pack(command.message);
  const length = Buffer.alloc(2);
  length.writeUInt16BE(body.length);
  socket.write(Buffer.concat([length, body]));
}, () => socket.end());
