# What a guest does with its end of a connection, as content.rs has it for the other end.
require 'socket'

BYTES = File.binread(File.join(__dir__, 'content'))
PIECE = 256 << 10
PERIOD = BYTES.bytesize - PIECE

# Content number n from a place on, no more than a piece.
def bytes(number, at, len)
  BYTES.byteslice((number * 0x9e3779b9 + at) % PERIOD, [len, PIECE].min)
end

def give(stream, number, len)
  at = 0
  at += stream.write(bytes(number, at, len - at)) while at < len
end

def take(stream, number, len, most = PIECE, pause = nil)
  at = 0
  while at < len
    sleep pause if pause
    got = stream.readpartial([most, len - at].min)
    got == bytes(number, at, got.bytesize) or raise "from byte #{at} of #{len} it is something else"
    at += got.bytesize
  end
end

# All that anybody takes who doesn't read, until nothing has gone on for a while.
def fill(stream, number)
  at = 0
  loop do
    at += stream.write_nonblock(bytes(number, at, PIECE))
  rescue IO::WaitWritable
    stream.wait_writable(1) or return at
  end
end

def end_of(stream)
  stream.read(1).nil? or raise 'more than wanted'
end

def reset(stream)
  stream.setsockopt(Socket::Option.linger(true, 0))
  stream.close
end

def reset_of(stream)
  stream.read(1)
  raise 'not a reset'
rescue Errno::ECONNRESET
  nil
end

# Why there is no connection; Ruby's own connect may take an error for none.
def refusal(address, port, limit)
  to = Addrinfo.tcp(address, port)
  stream = Socket.new(to.afamily, :STREAM)
  return 0 if stream.connect_nonblock(to, exception: false) != :wait_writable
  stream.wait_writable(limit) or raise "nothing after #{limit} s"
  stream.getsockopt(:SOCKET, :ERROR).int
rescue SystemCallError => error
  error.errno
end
