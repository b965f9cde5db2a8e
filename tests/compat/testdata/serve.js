// An http server whose page tells the connection's addresses.
const server = require('http').createServer((request, response) => {
  const s = request.socket;
  response.end(`${s.remoteAddress} ${s.remotePort} ${s.localAddress} ${s.localPort}`);
});
server.listen(Number(process.argv[2]), () => {
  console.log('listening', server.address().address, server.address().port);
});
