// A card processor that speaks ISO 8583 by iso_8583: text, a binary bit map, and a length of two bytes, all of them the library's own. It
// decides by the amount and keeps a book of what it authorized.
//
//   node processor.js LINKS
//   commands {"echo": true} asks for an echo on every link; {"book": true} prints the book
//   events   {"event": "listening", "ports": [...]}, {"event": "received" or "sent", "link": 0, "message": {...}, "same": true},
//            {"event": "book", "holds": [...]}, {"event": "fault", ...}
'use strict';

const net = require('node:net');
const Message = require('iso_8583');
const { tell, commands, frames } = require('./lines');

const DECLINED = '000000005100'; // not sufficient funds
const UNANSWERED = '000000006800'; // authorized, but nobody is told

const SIGN_ON = '001', SIGN_OFF = '002', ECHO = '301';

// Where the library's own formats are not those of ISO 8583:1987, and it lets itself be told.
const formats = {
  53: { ContentType: 'n', Label: 'Security related control information', LenType: 'fixed', MaxLen: 16 },
};

// The answers' elements that repeat the request's.
const ECHOED = [2, 3, 4, 7, 11, 12, 13, 25, 32, 33, 37, 41, 42, 49, 70, 90];

const holds = []; // {mti, stan, time, amount, code, reversals: [mti, ...]}
const links = new Set();
let lastSTAN = 0;

// pack is the library's, length included. It writes a bit map of 16 bytes whatever the message holds.
function pack(elements) {
  const frame = new Message({ ...elements }, formats).getBufferMessage();
  if (frame.error) {
    throw new Error(frame.error);
  }
  return frame;
}

// unpack returns the elements, and whether the library packs them to the same bytes again. It does not if there was no second bit map.
function unpack(frame) {
  const message = new Message(undefined, formats).getIsoJSON(frame);
  if (message.error) {
    throw new Error(message.error);
  }
  return { message, same: pack(message).equals(frame) };
}

function send(link, message) {
  link.socket.write(pack(message));
  tell({ event: 'sent', link: link.number, message });
}

// answer repeats the request and adds what was decided. Where nothing stands beyond DE 64, the library's second bit map announces nothing.
function answer(request, decided) {
  const message = {};
  for (const number of ECHOED) {
    if (request[number] !== undefined) {
      message[number] = request[number];
    }
  }
  const mti = new Message({ 0: request[0] }).getResMTI();
  message[0] = mti.error ? '0810' : mti; // the library knows no answer to an 0800
  return { ...message, ...decided };
}

function authorize(request) {
  const hold = { mti: request[0], stan: request[11], time: request[7], amount: request[4], code: '00', reversals: [] };
  holds.push(hold);
  switch (request[4]) {
    case UNANSWERED:
      return null;
    case DECLINED:
      hold.code = '51';
      return { 39: '51' };
  }
  return { 38: `A${String(holds.length).padStart(5, '0')}`, 39: '00' };
}

// reverse finds the original by DE 90: type (4), STAN (6), DE 7 (10), institutions (11 and 11).
function reverse(request) {
  const original = request[90];
  const hold = holds.find((h) => original.startsWith(h.mti + h.stan + h.time));
  if (!hold) {
    return { 39: '25' };
  }
  hold.reversals.push(request[0]);
  return { 39: '00' };
}

function decide(request) {
  switch (request[0]) {
    case '0100': case '0200':
      return authorize(request);
    case '0420': case '0421':
      return reverse(request);
    case '0800':
      return { 39: [SIGN_ON, SIGN_OFF, ECHO].includes(request[70]) ? '00' : '12' };
    case '0810':
      return null; // to our own echo
  }
  throw new Error(`a message of type ${request[0]}`);
}

function serve(number, socket) {
  const link = { number, socket };
  links.add(link);
  frames(socket, (frame) => {
    const { message, same } = unpack(frame);
    tell({ event: 'received', link: number, message, same });
    const decided = decide(message);
    if (decided) {
      send(link, answer(message, decided));
    }
  });
  socket.on('close', () => links.delete(link));
}

function echo() {
  const time = new Date().toISOString().replace(/\D/g, '').slice(4, 14); // DE 7: MMDDhhmmss, UTC
  for (const link of links) {
    lastSTAN += 1;
    send(link, { 0: '0800', 7: time, 11: String(lastSTAN).padStart(6, '0'), 70: ECHO });
  }
}

const servers = Array.from({ length: Number(process.argv[2]) }, (_, number) => net.createServer((socket) => serve(number, socket)));
Promise.all(servers.map((server) => new Promise((listening) => server.listen(0, '127.0.0.1', listening)))).then(() => {
  tell({ event: 'listening', ports: servers.map((server) => server.address().port) });
});

commands((command) => {
  if (command.echo) {
    echo();
  }
  if (command.book) {
    tell({ event: 'book', holds });
  }
}, () => {
  servers.forEach((server) => server.close());
  links.forEach((link) => link.socket.destroy());
});
