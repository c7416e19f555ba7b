#!/usr/bin/ruby
# frozen_string_literal: true

# Bookinfo's details service, answering as the original does:
#   /health        that it is up
#   /details/ID    a book as JSON; ID is whatever Ruby's Integer() takes
# The book is made up, unless ENABLE_EXTERNAL_BOOK_SERVICE=true: then it is looked up at Google
# Books, by https unless DO_NOT_ENCRYPT=true. EXTERNAL_BOOK_SERVICE=HOST:PORT names another server.

require 'json'
require 'socket'
require 'webrick'

# What a mesh and its tracers need carried from a request to those that it causes.
TRACE_HEADERS = %w[
  x-request-id x-ot-span-context x-datadog-trace-id x-datadog-parent-id
  x-datadog-sampling-priority traceparent tracestate x-cloud-trace-context grpc-trace-bin
  x-b3-traceid x-b3-spanid x-b3-parentspanid x-b3-sampled x-b3-flags sw8
  end-user user-agent cookie authorization jwt
].freeze

BOOK = {
  author: 'William Shakespeare',
  year: 1595,
  type: 'paperback',
  pages: 200,
  publisher: 'PublisherA',
  language: 'English',
  'ISBN-10': '1234567890',
  'ISBN-13': '123-1234567890'
}.freeze

# The book to look up elsewhere.
ISBN = '0486424618'
TIMEOUT = 5 # seconds, for each of connecting and reading

# Why a request cannot be answered; the text goes to the client.
class Refused < StandardError; end

def enabled?(name)
  ENV[name] == 'true'
end

def details(id, request)
  book = enabled?('ENABLE_EXTERNAL_BOOK_SERVICE') ? external_book(request) : BOOK
  { id: id }.merge(book)
end

def external_book(request)
  book = fetch("/books/v1/volumes?q=isbn:#{ISBN}", request).fetch('items').first.fetch('volumeInfo')
  isbn = book.fetch('industryIdentifiers').to_h { |i| i.values_at('type', 'identifier') }
  {
    author: book.fetch('authors').first,
    year: book['publishedDate'],
    type: book['printType'] == 'BOOK' ? 'paperback' : 'unknown',
    pages: book['pageCount'],
    publisher: book['publisher'],
    language: book['language'] == 'en' ? 'English' : 'unknown',
    'ISBN-10': isbn['ISBN_10'],
    'ISBN-13': isbn['ISBN_13']
  }
rescue KeyError, NoMethodError, JSON::ParserError
  raise Refused, 'the book service sent no book'
end

def fetch(path, request)
  require 'net/http' # here, since few call out and loading it takes time
  tls = !enabled?('DO_NOT_ENCRYPT')
  host, port = ENV.fetch('EXTERNAL_BOOK_SERVICE', 'www.googleapis.com').split(':')
  http = Net::HTTP.new(host, port || (tls ? 443 : 80))
  http.use_ssl = tls
  http.open_timeout = http.read_timeout = TIMEOUT
  http.max_retries = 0 # which would double the time
  headers = TRACE_HEADERS.to_h { |name| [name, request[name]] }.compact
  JSON.parse(http.get(path, headers).body)
rescue SystemCallError, SocketError, IOError, Timeout::Error, OpenSSL::SSL::SSLError => e
  raise Refused, "the book service does not answer: #{e.message}"
end

def book_id(path)
  Integer(path.split('/').last)
rescue ArgumentError
  raise Refused, 'please provide numeric product id'
end

def answer(response, status, body)
  response.status = status
  response['Content-Type'] = 'application/json'
  response.body = body.to_json
end

port = Integer(ARGV.first, exception: false) if ARGV.size == 1
unless port
  warn 'usage: details.rb PORT'
  exit 2
end

server = WEBrick::HTTPServer.new(
  Port: port,
  AcceptCallback: ->(socket) { socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1) }
)
%w[INT TERM].each { |signal| trap(signal) { server.shutdown } }

server.mount_proc('/health') { |_, response| answer(response, 200, status: 'Details is healthy') }
server.mount_proc('/details') do |request, response|
  answer(response, 200, details(book_id(request.path), request))
rescue Refused => e
  answer(response, 400, error: e.message)
end
server.start
